"""ViT against transformers (tests/goldens/make_vit.py), and its stem against torch's definition of a convolution."""

import dataclasses
import functools
from pathlib import Path

import clip_names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vit_names

from mmjax import weights
from mmjax.models import clip, vit
from mmjax.nn.attention import Attention
from mmjax.nn.mlp import MLP
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import Compute
from mmjax.ops import images as image_ops

GOLDENS = Path(__file__).parents[1] / "goldens"
CONFIG = vit.ViTConfig(30, 10, width=24, depth=2, num_heads=3, hidden=40)
# Everything that a ViT learned since, at once.
MODERN = dataclasses.replace(
    CONFIG, hidden=64, resize=image_ops.resize_cubic_antialias, registers=2, mlp=vit.swiglu, layer_scale=1.0,
    mask_token=True,
)  # fmt: skip


def load(name: str, names) -> tuple[dict, dict]:
    """params and the rest of a golden."""
    golden = dict(np.load(GOLDENS / f"{name}.npz"))
    return names(clip_names.group(golden, "weights")), golden


def random_params(model, *inputs, scale=0.3) -> dict:
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: rng.normal(0, scale, x.shape).astype(np.float32), shapes)


def count(config: vit.ViTConfig) -> int:
    side = config.image_size
    variables = jax.eval_shape(vit.ViT(config).init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


# --- the original's numbers


def test_last_hidden_state_equals_transformers():
    params, golden = load("vit_hf", vit_names.from_vit)
    out = jax.jit(vit.ViT(CONFIG).apply)({"params": params}, golden["images"].transpose(0, 2, 3, 1))
    clip_names.close("tokens", out.last_hidden_state, golden["last_hidden_state"], relative=1e-5)
    np.testing.assert_array_equal(out.pooler_output, out.last_hidden_state[:, 0])


@pytest.fixture(scope="module")
def modern():
    """A model with everything, its golden, its outputs and the gradient of their weighted mean."""
    params, golden = load("vit_dinov2", vit_names.from_dinov2)
    images = golden["images"].transpose(0, 2, 3, 1)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(params):
        out = vit.ViT(MODERN).apply({"params": params}, images, golden["masked"], collect=True)
        return jnp.mean(out.last_hidden_state * golden["mean_weights"]), out

    (_, out), gradients = jax.jit(total)(params)
    return golden, out, gradients


def test_registers_scales_gates_masks_and_other_sizes_equal_transformers(modern):
    golden, out, _ = modern
    assert out.last_hidden_state.shape == (3, 1 + 2 + 10, 24)  # 50 x 20 pixels, where 30 x 30 were trained
    clip_names.close("tokens", out.last_hidden_state, golden["last_hidden_state"], relative=1e-5)
    for layer in range(2):
        theirs = golden["hidden_states"][layer]
        clip_names.close(f"layer {layer}", out.hidden_states[layer], theirs, relative=1e-5)


def test_their_gradients_equal_transformers(modern):
    golden, _, gradients = modern
    expected = vit_names.from_dinov2(clip_names.group(golden, "gradients"))
    assert np.abs(expected["pos_embed"]).min() > 0  # through the resizing, and to every position
    clip_names.close_trees(gradients, expected, relative=1e-4)


def test_classes_loss_and_gradients_equal_transformers():
    golden = dict(np.load(GOLDENS / "hf_vit_classes" / "outputs.npz"))
    model, variables = weights.load_hf(GOLDENS / "hf_vit_classes")
    batch = {"images": golden["images"], "label": golden["label"].astype(np.int32)}

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(variables):
        value, aux = vit.loss(model, variables, batch, jax.random.key(0), 0)
        return value, (aux.metrics["accuracy"], aux.weight)

    (value, (accuracy, weight)), gradients = run(variables)
    clip_names.close("loss", value, golden["loss"], relative=1e-5)
    expected = vit_names.from_vit(clip_names.group(golden, "gradients"))
    clip_names.close_trees(gradients["params"], expected, relative=1e-4)
    assert accuracy == np.mean(golden["logits"].argmax(-1) == golden["label"])
    assert weight == 4


# --- what speaks for the image


@pytest.mark.parametrize("class_token", [True, False])
def test_the_mean_is_that_of_the_patches(class_token):
    config = dataclasses.replace(CONFIG, pool=vit.patch_mean, class_token=class_token, registers=3)
    images = np.random.default_rng(1).normal(size=(2, 30, 30, 3)).astype(np.float32)
    model = vit.ViT(config)
    out = jax.jit(model.apply)(random_params(model, images), images)
    tokens = np.array(out.last_hidden_state)
    assert tokens.shape == (2, class_token + 3 + 9, 24)
    np.testing.assert_allclose(out.pooler_output, tokens[:, class_token + 3 :].mean(1), atol=1e-5)


def test_bytes_are_normalised_and_features_are_float32():
    model = vit.ViT(dataclasses.replace(CONFIG, image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.4)))
    images = np.random.default_rng(0).integers(0, 256, (2, 30, 30, 3)).astype(np.uint8)
    floats = ((images / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]).astype(np.float32)
    variables = random_params(model, floats)
    encode = jax.jit(functools.partial(model.apply, method="encode_image"))
    np.testing.assert_allclose(encode(variables, images), encode(variables, floats), atol=1e-4)
    half = vit.ViT(model.config, Compute(dtype=jnp.bfloat16))
    features = jax.eval_shape(functools.partial(half.apply, method="encode_image"), variables, images)
    assert features.dtype == jnp.float32


# --- stochastic depth


def test_factors_reach_their_layer_their_branch_and_their_image():
    config = dataclasses.replace(CONFIG, layer_scale=0.5, drop_path=0.3)
    images = np.random.default_rng(3).normal(size=(3, 30, 30, 3)).astype(np.float32)
    variables = random_params(vit.ViT(config), images)

    @jax.jit
    def layers(factors):  # [L 2 B] -> [L B T D]
        model = vit.ViT(dataclasses.replace(config, drop=lambda *_: factors))
        rngs = {"drop_path": jax.random.key(0)}
        return model.apply(variables, images, train=True, collect=True, rngs=rngs).hidden_states

    kernels = jax.tree.map(lambda x: x[1], variables["params"]["layers"])
    for i, module in enumerate((Attention(3), MLP(40))):
        factors = np.random.default_rng(2).uniform(0, 2, (2, 2, 3)).astype(np.float32)
        factors[1] = 0
        factors[1, i, 2] = 1.5  # in the second layer, one branch of one image counts
        first, last = np.array(layers(factors))
        np.testing.assert_array_equal(last[:2], first[:2])
        part = kernels[("attention", "mlp")[i]]
        normed = LayerNorm(1e-6).apply({"params": kernels[f"norm{i + 1}"]}, first[2:])
        branch = kernels[f"layer_scale{i + 1}"] * module.apply({"params": part}, normed)
        np.testing.assert_allclose(last[2:], first[2:] + 1.5 * branch, atol=1e-4)


def test_nothing_is_left_out_but_in_training():
    plain, dropping = vit.ViT(CONFIG), vit.ViT(dataclasses.replace(CONFIG, drop_path=0.9))
    images = np.random.default_rng(3).normal(size=(3, 30, 30, 3)).astype(np.float32)
    variables = random_params(plain, images)
    expected = jax.jit(plain.apply)(variables, images).pooler_output
    np.testing.assert_array_equal(jax.jit(dropping.apply)(variables, images).pooler_output, expected)


@pytest.mark.parametrize(
    ("drop", "rates"), [(vit.drop_linear, [0, 0.2, 0.4]), (vit.drop_uniform, [0.4] * 3), (vit.drop_subset, [0.4] * 3)]
)
def test_as_many_branches_are_left_out_as_asked_and_the_mean_stays(drop, rates):
    factors = np.array(drop(jax.random.key(0), 0.4, 3, 5000))
    assert factors.shape == (3, 2, 5000)
    for layer, rate in enumerate(rates):
        np.testing.assert_allclose(np.unique(factors[layer][factors[layer] > 0]), 1 / (1 - rate), rtol=1e-6)
        np.testing.assert_allclose((factors[layer] == 0).mean(-1), rate, atol=0 if drop is vit.drop_subset else 0.03)
    assert abs(np.corrcoef(factors.reshape(6, -1)[2:])[0, 1:]).max() < 0.05  # drawn anew for each branch
    if drop is vit.drop_subset:  # 2.4 of 4 images are rounded down to 2, which then count 4 / 2
        few = np.array(drop(jax.random.key(1), 0.4, 1, 4))
        assert sorted(few[0, 0]) == [0, 0, 2, 2]


# --- sizes


@pytest.mark.parametrize(
    ("config", "number"),
    [
        (vit.vit_ti(), 5_524_416),
        (vit.vit_s(), 21_665_664),
        (vit.vit_s(8), 21_670_272),
        (vit.vit_b(), 85_798_656),
        (vit.vit_b(32), 87_455_232),
        (vit.vit_l(), 303_301_632),
        (vit.vit_h(), 630_764_800),
        (vit.vit_g(), 1_011_202_432),
        (vit.vit_gigantic(), 1_842_775_680),
        (dataclasses.replace(vit.vit_so400m(), class_token=False, pool=vit.patch_mean), 412_442_352),
    ],
)
def test_published_sizes_have_the_published_number_of_parameters(config, number):
    """Also what timm counts."""
    assert count(config) == number


def test_a_head_of_a_thousand_classes_has_the_published_number_of_parameters():
    for config, number in ((vit.vit_ti(), 5_717_416), (vit.vit_b(), 86_567_656), (vit.vit_l(), 304_326_632)):
        model = vit.ViTForClassification(config, tuple(str(i) for i in range(1000)))
        variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
        assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == number


def test_sizes_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="image_size=30, patch_size=8"):
        dataclasses.replace(CONFIG, patch_size=8)
    with pytest.raises(ValueError, match="patch_size of 2 for each of the 2 stem layers"):
        dataclasses.replace(CONFIG, stem=(4, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_token": False}, "pool=first_token reads the class token"),
        ({"class_token": False, "pool": vit.tanh_token}, "pool=tanh_token reads the class token"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


def test_pixels_that_fill_no_patch_are_dropped_where_asked():
    config = dataclasses.replace(CONFIG, image_size=34, cut=True)
    assert config.num_patches == 9
    images = np.random.default_rng(1).normal(size=(2, 34, 34, 3)).astype(np.float32)
    variables = random_params(vit.ViT(CONFIG), images[:, :30, :30])
    expected = jax.jit(vit.ViT(CONFIG).apply)(variables, images[:, :30, :30])
    np.testing.assert_array_equal(
        jax.jit(vit.ViT(config).apply)(variables, images).pooler_output, expected.pooler_output
    )
    with pytest.raises(ValueError, match="image_size=9, patch_size=10"):
        dataclasses.replace(config, image_size=9)
    small = vit.ViT(dataclasses.replace(config, resize=image_ops.resize_cubic))
    with pytest.raises(ValueError, match="at least patch_size=10, got 9 x 34"):
        small.apply(variables, images[:, :9])


@pytest.mark.parametrize(
    ("resize", "shape", "message"),
    [
        (None, (1, 40, 30, 3), r"images must be \[B 30 30 3\], got \[1, 40, 30, 3\]; for other sizes set .* resize"),
        (None, (1, 3, 30, 30), r"images must be \[B 30 30 3\], got \[1, 3, 30, 30\]"),
        (image_ops.resize_cubic, (30, 30, 3), r"images must be \[B H W 3\], got \[30, 30, 3\]"),
        (image_ops.resize_cubic, (1, 30, 30, 4), r"images must be \[B H W 3\], got \[1, 30, 30, 4\]"),
        (image_ops.resize_cubic, (1, 36, 30, 3), "multiples of patch_size=10, got 36 x 30"),
        (image_ops.resize_cubic, (1, 9, 30, 3), "multiples of patch_size=10, got 9 x 30"),
        (image_ops.resize_cubic, (1, 0, 30, 3), "multiples of patch_size=10, got 0 x 30"),
    ],
)
def test_images_that_do_not_fit_are_refused(resize, shape, message):
    model = vit.ViT(dataclasses.replace(CONFIG, resize=resize))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))


def test_masks_need_something_to_show_instead():
    with pytest.raises(ValueError, match="set mask_token=True"):
        jax.eval_shape(vit.ViT(CONFIG).init, jax.random.key(0), jnp.zeros((1, 30, 30, 3)), jnp.zeros((1, 9), bool))


def test_a_system_with_its_own_tower_refuses_what_it_would_leave_unread():
    config = clip.CLIPConfig.tiny()
    with pytest.raises(ValueError, match="CLIP's vision tower has no registers, got 4"):
        dataclasses.replace(config, vision=dataclasses.replace(config.vision, registers=4))


# --- the stem


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
