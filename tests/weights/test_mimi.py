"""Mimi from and to transformers: equal bits, published fields, errors one can act on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mmjax import weights
from mmjax.models import mimi
from mmjax.weights import mimi as names
from mmjax.weights.fields import Fields

SOURCE = Path("tests/goldens/hf_mimi")
PUBLISHED = {  # of kyutai/mimi's config.json, what tells sizes; written before positions had an object of their own
    "model_type": "mimi", "sampling_rate": 24000, "frame_rate": 12.5, "hidden_size": 512, "num_filters": 64,
    "upsampling_ratios": [8, 6, 5, 4], "codebook_size": 2048, "codebook_dim": 256, "num_quantizers": 32,
    "head_dim": 64, "rope_theta": 10000.0, "sliding_window": 250, "use_conv_shortcut": False, "normalize": False,
}  # fmt: skip


def test_what_is_written_equals_what_was_read(tmp_path):
    model, variables = weights.load_hf(SOURCE)
    weights.save_hf(tmp_path / "copy", model, variables)
    one, other = (load_file(folder / "model.safetensors") for folder in (SOURCE, tmp_path / "copy"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(other[name], one[name], err_msg=name)
    fields = [json.loads((folder / "config.json").read_text()) for folder in (SOURCE, tmp_path / "copy")]
    assert {name: fields[0].get(name, x) for name, x in fields[1].items()} == fields[1]
    assert weights.load_hf(tmp_path / "copy")[0] == model


def test_published_and_absent_fields_are_the_published_model():
    for fields in (PUBLISHED, {"model_type": "mimi"}):
        assert names.from_config(Fields(fields, "config.json")).config == mimi.mimi()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"decoder_config": None}, "decoder_config is null, half a codec"),
        ({"frame_rate": 25.0}, "frame_rate is 25.0, supported is"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn', supported is 'default' only"),
        ({"vector_quantization_hidden_dimension": 16}, "hidden_size are both 16"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, fields, words):
    folder = shutil.copytree(SOURCE, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    extra = {"codebook_dim": 16} if "vector_quantization_hidden_dimension" in fields else {}
    (folder / "config.json").write_text(json.dumps({**config, **fields, **extra}))
    with pytest.raises(ValueError, match=words):
        weights.load_hf(folder)
