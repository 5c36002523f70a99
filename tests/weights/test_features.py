"""The projectors of MMVP's LLaVA, both ways, and that one is never taken for the other."""

from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmjax import weights
from mmjax.models.features import Additive, Interleaved, MLPAdapter
from mmjax.nn.linear import Linear

RNG = np.random.default_rng(0)
CLIP, DINO = RNG.normal(size=(2, 2, 9, 6)).astype(np.float32)  # [B N D] each


def same_bits(one, other):
    one, other = np.asarray(one), np.asarray(other)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tobytes() == other.tobytes()


def with_params(model):
    variables = jax.eval_shape(model.init, jax.random.key(0), CLIP, DINO)
    return jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), variables)


@pytest.fixture
def file(tmp_path):
    """As a language model's file holds both projectors, and other tensors with names that come near."""
    shapes = {"0.weight": (7, 4), "0.bias": (7,), "2.weight": (7, 7), "2.bias": (7,)}
    tensors = {
        f"model.{prefix}mm_projector.{name}": RNG.normal(size=shape).astype(np.float32)
        for prefix, width in (("", 4), ("dino_", 3))
        for name, shape in {**shapes, "0.weight": (7, width)}.items()
    }
    tensors |= {
        "model.embed_tokens.weight": np.ones((3, 7), np.float32),
        "other.mm_projector.0.weight": np.ones((1, 1)),
    }
    save_file(tensors, tmp_path / "mm_projector.safetensors")
    return tmp_path / "mm_projector.safetensors"


def test_the_projectors_of_one_file_are_not_mixed_up(file):
    tensors = load_file(file)
    model, variables = weights.load_mof(file)
    for ours, theirs in (("clip_adapter", "model.mm_projector"), ("dino_adapter", "model.dino_mm_projector")):
        for part, number in (("up", 0), ("down", 2)):
            same_bits(variables["params"][ours][part]["kernel"], tensors[f"{theirs}.{number}.weight"].T.copy())
            same_bits(variables["params"][ours][part]["bias"], tensors[f"{theirs}.{number}.bias"])
    narrow = RNG.normal(size=(2, 9, 4)).astype(np.float32), RNG.normal(size=(2, 9, 3)).astype(np.float32)
    assert model.apply(variables, *narrow).shape == (2, 18, 7)


def test_projectors_come_back_bit_for_bit(file, tmp_path):
    model, variables = weights.load_mof(file)
    weights.save_mof(tmp_path / "again.safetensors", model, variables)
    again, tensors = load_file(tmp_path / "again.safetensors"), load_file(file)
    assert again.keys() == {name for name in tensors if name.startswith(("model.mm_", "model.dino_mm_"))}
    for name, x in again.items():
        same_bits(x, tensors[name])


def test_linear_projectors(tmp_path):
    model = Interleaved(partial(Linear, 5))
    variables = with_params(model)
    weights.save_mof(tmp_path / "linear.safetensors", model, variables)
    assert load_file(tmp_path / "linear.safetensors").keys() == {
        f"model.{name}mm_projector.{part}" for name in ("", "dino_") for part in ("weight", "bias")
    }
    loaded, found = weights.load_mof(tmp_path / "linear.safetensors")
    same_bits(loaded.apply(found, CLIP, DINO), model.apply(variables, CLIP, DINO))


def test_what_is_missing_in_a_file_is_said(file, tmp_path):
    tensors = load_file(file)
    only_clip = {name: x for name, x in tensors.items() if "dino" not in name}
    save_file(only_clip, tmp_path / "clip.safetensors")
    with pytest.raises(
        ValueError, match=r"expected model.mm_projector and model.dino_mm_projector, .*got .*model.mm_pro"
    ):
        weights.load_mof(tmp_path / "clip.safetensors")
    save_file({**tensors, "model.mm_projector.4.weight": np.ones((7, 7), np.float32)}, tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match=r"unknown model.mm_projector.4.weight"):
        weights.load_mof(tmp_path / "deep.safetensors")
    with pytest.raises(ValueError, match=r"has no place for this model"):
        weights.save_mof(
            tmp_path / "x.safetensors", Additive(partial(MLPAdapter, 5)), with_params(Additive(partial(MLPAdapter, 5)))
        )
