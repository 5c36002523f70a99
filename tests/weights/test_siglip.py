"""SigLIP from and to transformers: equal outputs, equal bits, and errors one can act on."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from mmjax import weights
from mmjax.models import siglip, vit
from mmjax.ops import images as image_ops
from mmjax.weights import engine
from mmjax.weights import siglip as names

HF = Path("tests/goldens/hf_siglip")


def assert_same_file(one: Path, other: Path):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape), name
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.fixture(scope="module")
def hf():
    return weights.load_hf(HF)


@pytest.fixture
def folder(tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(HF, tmp_path / "model"))


def edit(path: Path, **changes):
    """Sets fields, or removes those given as None; "text_config.hidden_act" is written text_config__hidden_act."""
    config = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, last = name.split("__")
        place = functools.reduce(dict.__getitem__, parents, config)
        place[last] = value
        if value is None:
            del place[last]
    path.write_text(json.dumps(config))


def test_there_and_back_keeps_every_bit(hf, tmp_path):
    weights.save_hf(tmp_path, *hf)
    assert_same_file(tmp_path / "model.safetensors", HF / "model.safetensors")
    assert weights.load_hf(tmp_path)[0] == hf[0]  # the config, too
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert (written["image_processor_type"], written["resample"]) == ("SiglipImageProcessor", 3)
    assert (written["size"], written["image_mean"]) == ({"height": 32, "width": 32}, [0.5] * 3)


def test_the_table_names_each_leaf_once(hf):
    used = [path for rule in names.RULES for path in ([rule.ours] if isinstance(rule.ours, str) else rule.ours)]
    assert sorted(used) == sorted(engine.flatten(hf[1]["params"]))


def test_resizing_at_loading_is_resizing_at_each_call(hf):
    model, variables = hf
    vision = dataclasses.replace(model.config.vision, resize=image_ops.resize_cubic)
    images = np.random.default_rng(0).normal(size=(1, 53, 53, 3)).astype(np.float32)
    resizing = siglip.SigLIP(dataclasses.replace(model.config, vision=vision))
    encode = lambda model, variables: model.apply(variables, images, method="encode_image")  # noqa: E731
    expected = encode(resizing, variables)
    np.testing.assert_allclose(encode(*weights.load_hf(HF, image_size=53)), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "config.json: text_config is missing, expected an object"),
        ({"vision_config__hidden_act": "selu"}, "vision_config: hidden_act is 'selu', supported are gelu, "),
        ({"vision_config__vision_use_head": False}, "vision_use_head is False, supported is True only"),
        ({"vision_config__num_channels": 4}, "num_channels is 4, supported is 3 only"),
        ({"text_config__projection_size": None}, "texts are embedded in 16 numbers, images in 24"),
        ({"text_config__num_hidden_layers": 2}, "unknown text_model.encoder.layers.2.layer_norm1.bias"),
        ({"text_config__vocab_size": 41}, r"token_embedding.weight is \[40, 16\], expected \[41, 16\]"),
    ],
)
def test_a_wrong_config_is_one_sentence(folder, changes, message):
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        weights.load_hf(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": (2,)}, "transformers' SiglipModel has no stem"),
        ({"class_token": True}, "has no class token and pools by attention"),
        ({"pool": vit.patch_mean}, "has no class token and pools by attention"),
        ({"activation": np.tanh}, "supported are gelu, "),
    ],
)
def test_what_the_format_cannot_say_is_refused_and_nothing_is_written(hf, tmp_path, change, message):
    vision = dataclasses.replace(hf[0].config.vision, **change)
    model = siglip.SigLIP(dataclasses.replace(hf[0].config, vision=vision))
    with pytest.raises(ValueError, match=message):
        weights.save_hf(tmp_path / "out", model, hf[1])
    assert not (tmp_path / "out").exists()


@pytest.mark.parity
def test_transformers_reads_what_is_written(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = siglip.SigLIP(siglip.SigLIPConfig.tiny())
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), names.abstract(model))
    weights.save_hf(tmp_path, model, variables)
    original, info = transformers.SiglipModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected or mismatched

    images, input_ids = rng.normal(size=(3, 32, 32, 3)).astype(np.float32), rng.integers(0, 500, (3, 16))
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        theirs = original.eval()(input_ids=torch.from_numpy(input_ids), pixel_values=pixels)
    ours = model.apply(variables, images, input_ids)
    for name in ("image_embeds", "text_embeds", "logits_per_image"):
        np.testing.assert_allclose(getattr(ours, name), theirs[name], atol=2e-5)
    original.save_pretrained(tmp_path / "again")
    assert_same_file(tmp_path / "again" / "model.safetensors", tmp_path / "model.safetensors")
