"""ViT from and to transformers: equal outputs, equal bits, both spellings, and errors one can act on."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmjax import weights
from mmjax.models import vit
from mmjax.ops import images as image_ops
from mmjax.weights import engine
from mmjax.weights import vit as names

HF, CLASSES = (Path("tests/goldens") / name for name in ("hf_vit", "hf_vit_classes"))


def outputs(folder: Path) -> dict:
    return dict(np.load(folder / "outputs.npz"))


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
    """Sets fields, or removes those given as None."""
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


# --- the original's numbers


def test_a_folder_of_transformers_computes_what_the_original_computed(hf):
    model, variables = hf
    golden = outputs(HF)
    out = jax.jit(model.apply)(variables, golden["images"])
    for name in ("last_hidden_state", "pooler_output"):
        np.testing.assert_allclose(getattr(out, name), golden[name], atol=1e-5, rtol=1e-5)


def test_images_of_another_size_follow_the_rule_of_transformers(hf):
    model, variables = hf
    golden = outputs(HF)
    model = vit.ViT(dataclasses.replace(model.config, resize=image_ops.resize_cubic))
    out = jax.jit(model.apply)(variables, golden["larger"])  # 40 x 50 pixels
    np.testing.assert_allclose(out.last_hidden_state, golden["larger_hidden_state"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("source", [HF, CLASSES], ids=lambda path: path.name)
def test_resizing_at_loading_is_resizing_at_each_call(source):
    model, variables = weights.load_hf(source)
    resizing = dataclasses.replace(model, config=dataclasses.replace(model.config, resize=image_ops.resize_cubic))
    images = np.random.default_rng(0).normal(size=(1, 50, 50, 3)).astype(np.float32)
    expected = jax.jit(resizing.apply)(variables, images).last_hidden_state
    model, variables = weights.load_hf(source, image_size=50)
    assert model.config.image_size == 50
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, images).last_hidden_state, expected, atol=1e-5, rtol=1e-5
    )


def test_classes_come_with_their_names():
    model, variables = weights.load_hf(CLASSES)
    assert model.labels == ("cat", "dog", "red panda")
    golden = outputs(CLASSES)
    logits = jax.jit(model.apply)(variables, golden["images"]).logits
    np.testing.assert_allclose(logits, golden["logits"], atol=1e-5, rtol=1e-5)


# --- there and back


@pytest.mark.parametrize("source", [HF, CLASSES], ids=lambda path: path.name)
def test_there_and_back_keeps_every_bit(source, tmp_path):
    model, variables = weights.load_hf(source)
    weights.save_hf(tmp_path, model, variables)
    assert_same_file(tmp_path / "model.safetensors", source / "model.safetensors")
    assert weights.load_hf(tmp_path)[0] == model  # the config and the labels, too


def in_memory(name: str) -> str:
    """What transformers 5 calls a tensor of its file."""
    for pattern, other in (
        (r"encoder\.layer\.", "layers."), (r"attention\.attention\.(\w)\w+", r"attention.\1_proj"),
        (r"attention\.output\.dense", "attention.o_proj"), (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
    ):  # fmt: skip
        name = re.sub(pattern, other, name)
    return name


@pytest.mark.parametrize("source", [HF, CLASSES], ids=lambda path: path.name)
def test_names_in_memory_are_read_too(source, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    tensors = {in_memory(name): x for name, x in load_file(source / "model.safetensors").items()}
    assert sum(".q_proj." in name for name in tensors) == 4
    save_file(tensors, folder / "model.safetensors")
    for ours, expected in zip(*(jax.tree.leaves(weights.load_hf(one)[1]) for one in (folder, source)), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_file_without_a_pooler_is_read_at_the_class_token(folder, tmp_path):
    tensors = load_file(HF / "model.safetensors")
    save_file({name: x for name, x in tensors.items() if "pooler" not in name}, folder / "model.safetensors")
    model, variables = weights.load_hf(folder)
    assert model.config.pool is vit.first_token
    weights.save_hf(tmp_path / "back", model, variables)
    assert_same_file(tmp_path / "back" / "model.safetensors", folder / "model.safetensors")


def test_what_stands_for_masked_patches_is_read_and_written(folder, tmp_path):
    tensors = load_file(HF / "model.safetensors") | {"embeddings.mask_token": np.full((1, 1, 24), 0.5, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    model, variables = weights.load_hf(folder)
    assert (variables["params"]["mask_embed"] == 0.5).all()
    weights.save_hf(tmp_path / "back", model, variables)
    assert_same_file(tmp_path / "back" / "model.safetensors", folder / "model.safetensors")


def test_projections_without_a_bias(folder, tmp_path):
    edit(folder / "config.json", qkv_bias=False)
    tensors = load_file(HF / "model.safetensors")
    biases = [name for name in tensors if re.search(r"(query|key|value)\.bias", name)]
    assert len(biases) == 6
    save_file({name: x for name, x in tensors.items() if name not in biases}, folder / "model.safetensors")
    model, variables = weights.load_hf(folder)
    assert set(variables["params"]["layers"]["attention"]["query"]) == {"kernel"}
    assert set(variables["params"]["layers"]["attention"]["out"]) == {"kernel", "bias"}
    weights.save_hf(tmp_path / "back", model, variables)
    assert_same_file(tmp_path / "back" / "model.safetensors", folder / "model.safetensors")


def test_the_preprocessor_tells_how_bytes_are_normalised(folder, tmp_path):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    model, variables = weights.load_hf(folder)
    assert (model.config.image_mean, model.config.image_std) == (tuple(mean), tuple(std))
    weights.save_hf(tmp_path / "back", model, variables)
    written = json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())
    assert (written["image_mean"], written["size"]) == (mean, {"height": 30, "width": 30})


def test_the_table_names_each_leaf_once(hf):
    model, variables = hf
    assert sorted(rule.ours for rule in names.RULES(model)) == sorted(engine.flatten(variables["params"]))


# --- what users get wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "vitt"}, "model_type is 'vitt', supported are clip, siglip, vit, "),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "supported are ViTModel, ViTForImageClassification"),
        ({"hidden_act": "selu"}, "hidden_act is 'selu', supported are gelu, "),
        ({"num_channels": 1}, "num_channels is 1, supported is 3 only"),
        ({"pooler_act": "gelu"}, "pooler_act is 'gelu', supported is 'tanh' only"),
        ({"pooler_output_size": 12}, "pooler_output_size is 12, supported is 24 only"),
        ({"image_size": [30, 40]}, r"image_size is \[30, 40\], expected a whole number"),
        ({"patch_size": 7}, "image_size must be a multiple of patch_size"),
        ({"num_hidden_layers": 3}, "missing encoder.layer.2"),
        ({"qkv_bias": False}, "unknown encoder.layer.0.attention.attention"),
    ],
)
def test_a_wrong_config_is_one_sentence(folder, changes, message):
    edit(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message):
        weights.load_hf(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registers": 2}, "transformers' ViTModel has no registers, got 2"),
        ({"layer_scale": 1.0}, "has no layer_scale, got 1.0"),
        ({"mlp": vit.swiglu}, "has no mlp"),
        ({"stem": (4,)}, "has no stem"),
        ({"pool": vit.patch_mean}, "has no pool=patch_mean"),
        ({"activation": np.tanh}, "supported are gelu, "),
    ],
)
def test_what_the_format_cannot_say_is_refused_and_nothing_is_written(hf, tmp_path, change, message):
    model = vit.ViT(dataclasses.replace(hf[0].config, **change))
    with pytest.raises(ValueError, match=message):
        weights.save_hf(tmp_path / "out", model, hf[1])
    assert not (tmp_path / "out").exists()


# --- the original reads what we write


@pytest.mark.parity
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_transformers_reads_what_is_written(tmp_path, qkv_bias):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = vit.ViT(dataclasses.replace(vit.ViTConfig.tiny(), pool=vit.tanh_token, qkv_bias=qkv_bias))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), names.abstract(model))
    weights.save_hf(tmp_path, model, variables)
    original, info = transformers.ViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected or mismatched
    images = rng.normal(size=(3, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = original.eval()(torch.from_numpy(images).permute(0, 3, 1, 2))
    ours = model.apply(variables, images)
    np.testing.assert_allclose(ours.last_hidden_state, theirs.last_hidden_state, atol=2e-5)
    np.testing.assert_allclose(ours.pooler_output, theirs.pooler_output, atol=2e-5)
    original.save_pretrained(tmp_path / "again")
    assert_same_file(tmp_path / "again" / "model.safetensors", tmp_path / "model.safetensors")
    transformers.AutoImageProcessor.from_pretrained(tmp_path)
