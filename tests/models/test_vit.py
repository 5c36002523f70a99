"""ViT against transformers (tests/goldens/make_vit.py), and its stem against torch's definition of a convolution."""

import dataclasses
from pathlib import Path

import clip_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import vit

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "vit_hf.npz")
CONFIG = vit.ViTConfig(30, 10, width=24, depth=2, num_heads=3, hidden=40)


def params() -> dict:
    flat = clip_names.group(GOLDEN, "weights")
    linear, norm = clip_names.linear, clip_names.norm

    def layer(flat, name):
        ours = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
        return {
            "norm1": norm(flat, f"{name}.layernorm_before"),
            "attention": {our: linear(flat, f"{name}.attention.{their}") for our, their in ours.items()},
            "norm2": norm(flat, f"{name}.layernorm_after"),
            "mlp": {"up": linear(flat, f"{name}.mlp.fc1"), "down": linear(flat, f"{name}.mlp.fc2")},
        }

    patch = "embeddings.patch_embeddings.projection"
    return {
        "patch_embed": {"kernel": flat[f"{patch}.weight"].transpose(2, 3, 1, 0), "bias": flat[f"{patch}.bias"]},
        "class_embed": flat["embeddings.cls_token"][0, 0],
        "pos_embed": flat["embeddings.position_embeddings"][0],
        "layers": clip_names.stack(flat, "layers", layer),
        "norm": norm(flat, "layernorm"),
    }


def test_last_hidden_state_equals_transformers():
    out = jax.jit(vit.ViT(CONFIG).apply)({"params": params()}, GOLDEN["images"].transpose(0, 2, 3, 1))
    np.testing.assert_allclose(out.last_hidden_state, GOLDEN["last_hidden_state"], atol=2e-5)
    np.testing.assert_array_equal(out.pooler_output, out.last_hidden_state[:, 0])


def test_published_size():
    variables = jax.eval_shape(
        vit.ViT(vit.ViTConfig()).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
    )  # spec: ViT-B/16 without a head
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 85_798_656


def test_the_stem_halves_the_picture_and_reads_3_by_3():
    images = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
    stem = vit.Stem((4, 6))
    out, variables = jax.jit(stem.init_with_output)(jax.random.key(0), images)
    assert out.shape == (1, 2, 2, 6)
    assert set(variables["params"]) == {"conv0", "norm0", "conv1", "norm1"}
    kernel = np.array(variables["params"]["conv0"]["kernel"])
    window = np.einsum("hwc,hwcd->d", images[0, 2:5, 4:7], kernel)  # the output at row 1, column 2
    expected = np.maximum((window - window.mean()) / np.sqrt(window.var() + 1e-5), 0)
    first = jax.jit(vit.Stem((4,)).apply)(variables, images)
    np.testing.assert_allclose(first[0, 1, 2], expected, atol=1e-5)


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="image_size=30, patch_size=8"):
        dataclasses.replace(CONFIG, patch_size=8)
    with pytest.raises(ValueError, match="patch_size of 2 for each of the 2 stem layers"):
        dataclasses.replace(CONFIG, stem=(4, 4))
