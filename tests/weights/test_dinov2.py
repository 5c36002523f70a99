"""DINOv2 from and to transformers: equal outputs and gradients, equal bits, both spellings, errors one can act on."""

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
from mmjax.models import dino, dinov2, vit
from mmjax.ops import images as image_ops
from mmjax.weights import dinov2 as names

PLAIN, REGISTERS = (Path("tests/goldens") / name for name in ("hf_dinov2", "hf_dinov2_registers"))
BOTH = pytest.mark.parametrize("source", [PLAIN, REGISTERS], ids=lambda path: path.name)


def outputs(folder: Path) -> dict:
    return dict(np.load(folder / "outputs.npz"))


def assert_same_file(one: Path, other: Path):
    one, other = load_file(one), load_file(other)
    assert one.keys() == other.keys()
    for name in one:
        assert (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape), name
        assert one[name].tobytes() == other[name].tobytes(), name


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-5)


@BOTH
def test_a_folder_of_transformers_computes_what_the_original_computed(source):
    model, variables = weights.load_hf(source)
    assert isinstance(model, dinov2.Backbone)
    golden = outputs(source)
    out = jax.jit(model.apply)(variables, golden["images"])
    assert_close(out.last_hidden_state, golden["last_hidden_state"])
    assert_close(out.pooler_output, golden["pooler_output"])


@BOTH
def test_hidden_patches_of_another_size_and_their_gradients_equal_the_originals(source):
    model, variables = weights.load_hf(source)
    golden = outputs(source)

    def value(variables):
        out = model.apply(variables, golden["wide"], golden["masked"]).last_hidden_state  # 5 x 3 patches
        return (out * golden["weights"]).mean(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(value, has_aux=True))(variables)
    assert_close(out, golden["masked_hidden_state"])
    gradients = gradients["params"]
    for ours, theirs in (
        (gradients["mask_embed"], golden["mask_gradient"][0]),
        (gradients["pos_embed"], golden["position_gradient"][0]),
        (gradients["layers"]["layer_scale2"], golden["scale_gradient"]),
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@BOTH
def test_there_and_back_keeps_every_bit(source, tmp_path):
    model, variables = weights.load_hf(source)
    weights.save_hf(tmp_path, model, variables)
    assert_same_file(tmp_path / "model.safetensors", source / "model.safetensors")
    assert weights.load_hf(tmp_path)[0] == model  # the config, too
    theirs = json.loads((source / "config.json").read_text())
    ours = json.loads((tmp_path / "config.json").read_text())
    assert {name: ours[name] for name in ours if name in theirs} == {
        name: theirs[name] for name in ours if name in theirs
    }


def in_memory(tensors: dict) -> dict:
    """As transformers 5 holds what is in its file."""
    found = {}
    for name, x in tensors.items():
        name = re.sub(r"attention\.attention\.(\w)\w+", r"attention.\1_proj", name)
        name = name.replace("attention.output.dense", "attention.o_proj").replace("weights_out", "down_proj")
        if "weights_in" in name:
            for one, half in zip(("gate_proj", "up_proj"), np.split(x, 2), strict=True):
                found[name.replace("weights_in", one)] = half
        else:
            found[name] = x
    return found


@BOTH
def test_names_in_memory_are_read_too(source, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "model"))
    tensors = in_memory(load_file(source / "model.safetensors"))
    assert sum(".q_proj." in name for name in tensors) == 4
    assert sum("gate_proj" in name for name in tensors) == 4 * (source is REGISTERS)
    save_file(tensors, folder / "model.safetensors")
    for ours, expected in zip(*(jax.tree.leaves(weights.load_hf(one)[1]) for one in (folder, source)), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_resizing_at_loading_is_resizing_at_each_call():
    for source in (PLAIN, REGISTERS):
        model, variables = weights.load_hf(source)
        larger, resized = weights.load_hf(source, image_size=36)
        assert larger.config.image_size == 36
        table = vit.resized_positions(variables["params"]["pos_embed"], model.config.resize, 1, 6, 6)
        np.testing.assert_allclose(resized["params"]["pos_embed"], table, atol=1e-6)


def test_the_rule_that_resizes_positions_is_not_chosen_by_the_caller():
    with pytest.raises(ValueError, match="by its config's resize, so antialias=True has nothing to say"):
        names.resize(dinov2.Backbone(vit.ViTConfig.tiny()), {"params": {}}, 16, antialias=True)


def test_the_two_kinds_resize_positions_by_different_rules():
    rules = [weights.load_hf(source)[0].config.resize for source in (PLAIN, REGISTERS)]
    assert rules == [image_ops.resize_cubic, image_ops.resize_cubic_antialias]
    assert dinov2.vit_s14().resize is image_ops.resize_cubic_offset  # Meta's own, without registers


def test_a_hub_configs_constants_are_read(tmp_path):
    """facebook/dinov2-giant's config.json, in short."""
    fields = {"model_type": "dinov2", "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24,
              "image_size": 518, "patch_size": 14, "mlp_ratio": 4, "use_swiglu_ffn": True}  # fmt: skip
    model = names.from_config(names.Fields(fields, "config.json"), names.Fields({}, "preprocessor_config.json"))
    published = dataclasses.replace(dinov2.vit_g14(), layer_scale=1.0, mask_token=False, resize=image_ops.resize_cubic)
    assert dataclasses.replace(model.config, init=published.init) == published
    assert model.config.image_mean == dino.IMAGENET_MEAN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_scale": None}, "has LayerScale and the class token"),
        ({"hidden": 37}, "hidden=a multiple of width, got hidden=37, width=18"),
        ({"stem": (4,), "patch_size": 6}, "has no stem"),
        ({"class_token": False, "pool": vit.patch_mean}, "has no"),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path, change, message):
    model, variables = weights.load_hf(PLAIN)
    model = dinov2.Backbone(dataclasses.replace(model.config, **change))
    with pytest.raises(ValueError, match=message):
        weights.save_hf(tmp_path / "out", model, variables)
    assert not (tmp_path / "out").exists()


@pytest.mark.parity
@BOTH
def test_transformers_reads_what_is_written_and_writes_it_again(source, tmp_path):
    transformers = pytest.importorskip("transformers")
    model, variables = weights.load_hf(source)
    weights.save_hf(tmp_path, model, variables)
    original, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected or mismatched
    original.save_pretrained(tmp_path / "again")
    assert_same_file(tmp_path / "again" / "model.safetensors", tmp_path / "model.safetensors")
