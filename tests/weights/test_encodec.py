"""EnCodec from and to transformers: the same weights, older spellings, errors one can act on."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmjax import weights

SOURCE = Path("tests/goldens/hf_encodec/causal")


def rewrite(folder: Path, **fields) -> Path:
    """A copy of the golden with other fields of config.json."""
    shutil.copytree(SOURCE, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


def test_what_is_written_holds_the_same_kernels_and_codebooks(tmp_path):
    model, variables = weights.load_hf(SOURCE)
    weights.save_hf(tmp_path / "copy", model, variables)
    one, other = (load_file(folder / "model.safetensors") for folder in (SOURCE, tmp_path / "copy"))
    assert {name: x.shape for name, x in one.items()} == {name: x.shape for name, x in other.items()}
    for name in one:
        if name.endswith("original0"):
            kernels = []
            for file in (one, other):
                direction = file[name.replace("original0", "original1")]
                kernels.append(direction * file[name] / np.linalg.norm(direction, axis=(1, 2), keepdims=True))
            np.testing.assert_allclose(kernels[1], kernels[0], rtol=1e-5, atol=1e-7, err_msg=name)
        elif not name.endswith("original1"):
            np.testing.assert_array_equal(other[name], one[name], err_msg=name)
    fields = [json.loads((folder / "config.json").read_text()) for folder in (SOURCE, tmp_path / "copy")]
    assert {name: fields[0].get(name, x) for name, x in fields[1].items()} == fields[1]
    again, reread = weights.load_hf(tmp_path / "copy")
    assert again == model
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), reread, variables)


@pytest.mark.slow
def test_older_files_call_directions_and_lengths_v_and_g(tmp_path):
    folder = rewrite(tmp_path / "old", codebook_dim=None)
    tensors = load_file(folder / "model.safetensors")
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    names = {name: next((name.replace(*pair) for pair in old.items() if pair[0] in name), name) for name in tensors}
    save_file({names[name]: x for name, x in tensors.items()}, folder / "model.safetensors")
    found, wanted = weights.load_hf(folder)[1], weights.load_hf(SOURCE)[1]
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"norm_type": "time_group_norm"}, "norm_type is 'time_group_norm', supported is 'weight_norm' only"),
        ({"audio_channels": 2}, "audio_channels is 2, supported is 1 only"),
        ({"chunk_length_s": 1.0}, "chunk_length_s is 1.0"),
        ({"pad_mode": "circular"}, "pad_mode is 'circular', supported are reflect, constant, replicate"),
        ({"codebook_dim": 5}, "codebook_dim is 5, supported is 6 only"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, fields, words):
    with pytest.raises(ValueError, match=words):
        weights.load_hf(rewrite(tmp_path / "changed", **fields))


def test_missing_tensors_are_named(tmp_path):
    folder = rewrite(tmp_path / "changed")
    tensors = load_file(folder / "model.safetensors")
    del tensors["quantizer.layers.1.codebook.embed"], tensors["encoder.layers.0.conv.parametrizations.weight.original0"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing .*encoder\.layers\.0\.conv\.weight.*layers\.1\.codebook\.embed"):
        weights.load_hf(folder)
