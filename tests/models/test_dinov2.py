"""DINOv2 against facebookresearch/dinov2's own numbers on two devices (tests/goldens/make_dinov2.py), then what users
rely on."""

import dataclasses
import functools
from pathlib import Path

import dino_names
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dino_names import close, close_trees

from mmjax.data.masking import BlockMasks
from mmjax.models import dino, dinov2, vit
from mmjax.train import optim

GOLDEN = dict(np.load(Path(__file__).parents[1] / "goldens" / "dinov2.npz"))
STEPS, HEAD = 4, dino.HeadConfig(hidden=20, bottleneck=6, prototypes=14)
PLAIN = vit.ViTConfig(16, 4, width=12, depth=2, num_heads=3, hidden=48, **dinov2.as_published(registers=0))
GIANT = vit.ViTConfig(
    16, 4, width=12, depth=2, num_heads=3, hidden=32, mlp=vit.swiglu, **dinov2.as_published(registers=2)
)
SETTINGS = {"ramp": 2, "group": 3, "hidden": 24}
CONFIGS = {
    "giant": dinov2.DINOv2Config(GIANT, HEAD, dataclasses.replace(HEAD, prototypes=11), dinov2.sinkhorn, **SETTINGS),
    "short": dinov2.DINOv2Config(PLAIN, HEAD, None, dinov2.center_and_sharpen, **SETTINGS),
}
NAMES = (pytest.param("giant", marks=pytest.mark.slow), "short")


def params(name: str, prefix: str) -> dict:
    flat = dino_names.group(GOLDEN, f"{name}/{prefix}")
    tree = {"backbone": dino_names.backbone(flat), "head": dino_names.head(flat, "dino_head.")}
    return tree | ({"patch_head": dino_names.head(flat, "ibot_head.")} if name == "giant" else {})


def batch(it: int) -> dict:
    found = dino_names.group(GOLDEN, f"batch/{it}")
    images = {key: found[key].astype(np.float32).transpose(0, 1, 3, 4, 2) for key in ("global_crops", "local_crops")}
    return images | {"masks": found["masks"]}


def start(name: str) -> dict:
    patch = 11 if name == "giant" else 14
    center = {"cls": np.zeros(14, np.float32), "patch": np.zeros(patch, np.float32)}
    return {"params": params(name, "before"), "teacher": params(name, "before"), "center": center}


def close_losses(it: int, metrics: dict, name: str) -> None:
    """Both whole-image terms stand in one of ours; the original logs half of the patches' and of KoLeo, weighted."""
    first, local, patch, koleo = GOLDEN[f"{name}/losses"][it]
    wanted = {"image_loss": first + local, "patch_loss": 2 * patch, "koleo": 2 * koleo / 0.1}
    for key, value in wanted.items():
        close(f"loss {it} {key}", metrics[key], value, relative=2e-5)
    close(f"loss {it}", metrics["loss"], first + local + 2 * patch + 2 * koleo, relative=2e-5)


@functools.cache
def differentiated(name: str):
    """((loss, aux), gradients) of the config's variables and a batch, compiled once."""
    model = dinov2.DINOv2(CONFIGS[name])

    @jax.jit
    def run(variables, batch, it):
        def value(params):
            return dinov2.loss(model, {**variables, "params": params}, batch, jax.random.key(0), it)

        return jax.value_and_grad(value, has_aux=True)(variables["params"])

    return run


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_of_a_step_equal_the_originals(name):
    (_, aux), found = differentiated(name)(start(name), batch(0), jnp.int32(0))
    close_losses(0, aux.metrics, name)
    close_trees(found, params(name, "gradients"), relative=1e-4)


def optimizer(name: str) -> optim.CosineAdamW:
    scale = optim.LayerDecay(1.0 if name == "giant" else 0.8, depth=2, patches=0.2)
    return optim.CosineAdamW(
        0.02, end=1e-3, weight_decay_end=0.2, eps=1e-3, clip=0.05, clipping=optim.clip_parts, frozen_steps=1,
        moments_wait=False, scale=scale,
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_four_steps_of_training_equal_the_originals(name):
    """Masks, schedules, clipping part by part, rates by layer, the frozen last layer, centers and teacher."""
    average, variables = optim.ema("params", "teacher", optim.cosine(0.8, 1.0, STEPS)), start(name)
    transform = optimizer(name).build(STEPS, variables["params"])
    state, update = transform.init(variables["params"]), jax.jit(transform.update)
    for it in range(STEPS):
        (_, aux), gradients = differentiated(name)(variables, batch(it), jnp.int32(it))
        close_losses(it, aux.metrics, name)
        changes, state = update(gradients, state, variables["params"])
        moved = {**variables, **aux.collections, "params": optax.apply_updates(variables["params"], changes)}
        variables = average(moved, it)
    for kind, ours in (("student", "params"), ("teacher", "teacher")):
        close_trees(jax.tree.map(np.asarray, variables[ours]), params(name, kind), relative=1e-4)
    for ours in ("cls", "patch"):
        close(f"center {ours}", variables["center"][ours], GOLDEN[f"{name}/center/{ours}"].ravel(), relative=1e-4)


def sinkhorn_in_numpy(logits, temperature, iterations=3):
    """Caron et al. 2020, appendix A: scale rows and columns in turn."""
    q = np.exp(np.asarray(logits, np.float64) / temperature).T
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(1, keepdims=True) * q.shape[0]
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def test_sinkhorn_knopp_equals_the_scaling_of_rows_and_columns():
    logits = np.random.default_rng(0).uniform(-1, 1, (20, 7)).astype(np.float32)
    found = dinov2.sinkhorn_knopp(logits, np.ones(20, bool), 0.04)
    np.testing.assert_allclose(found, sinkhorn_in_numpy(logits, 0.04), atol=2e-5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_sinkhorn_knopp_does_not_see_padding_and_does_not_overflow():
    rng = np.random.default_rng(1)
    counts = rng.random(30) < 0.6
    logits = rng.uniform(-1, 1, (30, 7)).astype(np.float32)
    found = dinov2.sinkhorn_knopp(np.where(counts[:, None], logits, 1e6), counts, 0.05)
    np.testing.assert_allclose(found[counts], sinkhorn_in_numpy(logits[counts], 0.05), atol=2e-5)
    assert not found[~counts].any()
    assert not dinov2.sinkhorn_knopp(logits, np.zeros(30, bool), 0.05).any()
    far = dinov2.sinkhorn_knopp(100 * logits, np.ones(30, bool), 0.05)  # exp(2,000)
    np.testing.assert_allclose(far.sum(1), 1, rtol=1e-4)


def koleo_by_hand(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = np.sqrt(((x[:, None] - x[None] + 1e-8) ** 2).sum(-1))
    np.fill_diagonal(distance, np.inf)
    return -np.log(distance.min(1)).mean()


def test_koleo_looks_for_neighbours_in_its_group_and_view():
    x = np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32)
    wanted = np.mean([[koleo_by_hand(x[rows, v]) for v in (0, 1)] for rows in (slice(0, 3), slice(3, 6))], axis=0).sum()
    np.testing.assert_allclose(dinov2.koleo(x, 3), wanted, rtol=1e-5)
    assert abs(float(dinov2.koleo(x, 6)) - wanted) > 0.1


def test_hidden_patches_are_gathered_with_the_weight_of_their_view():
    masks = np.zeros((4, 2, 3), bool)
    masks[0, 1, [0, 2]] = masks[1, 0, 1] = masks[3, 1] = True
    hidden = dinov2.find_hidden(masks, group=2, most=4)
    patches = np.arange(24.0).reshape(4, 2, 3, 1)
    found = np.where(hidden.counts, hidden.gather(patches)[..., 0], -1)
    np.testing.assert_array_equal(found, [[3, 5, 7, -1], [21, 22, 23, -1]])
    np.testing.assert_allclose(hidden.weight, np.array([[1 / 2, 1 / 2, 1, 0], [1 / 3] * 3 + [0]]) / 8, rtol=1e-6)


def test_a_student_sees_nothing_of_hidden_patches_and_its_teacher_all():
    model, one = dinov2.DINOv2(CONFIGS["short"]), batch(0)
    mask = one["masks"].reshape(6, 2, 4, 4).repeat(4, 2).repeat(4, 3)[..., None]
    painted = np.where(mask, 7.0, one["global_crops"])
    apply = jax.jit(functools.partial(model.apply, start("short")), static_argnames="hide")
    for hide in (True, False):
        out, other = (apply(crops, one["masks"], hide=hide) for crops in (one["global_crops"], painted))
        same = np.allclose(out.logits, other.logits, atol=1e-5)
        assert same == hide


def test_targets_come_from_the_unmasked_patch_at_the_same_place():
    """With identical heads and nothing hidden from the student, both say the same of each patch."""
    model, one = dinov2.DINOv2(CONFIGS["giant"]), batch(1)
    apply = jax.jit(functools.partial(model.apply, start("giant"), hide=False))
    out = apply(one["global_crops"], one["masks"])
    tokens = jax.jit(
        lambda images: model.apply(start("giant"), images, method="encode_patches")
    )(one["global_crops"].reshape(12, 16, 16, 3))  # fmt: skip
    rows = tokens.reshape(-1, 12)[one["masks"].reshape(-1)]
    head = dino.Head(CONFIGS["giant"].patch_head).apply({"params": params("giant", "before")["patch_head"]}, rows)
    counted = np.asarray(out.hidden.counts)
    np.testing.assert_allclose(out.patch_logits[counted], head, atol=1e-4)


def test_the_center_weighs_groups_alike():
    logits = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    counts = np.array([[True, True, True, False], [True, False, False, False]])
    _, center = dinov2.center_and_sharpen(logits, counts, np.zeros(3, np.float32), 0.1, momentum=0.0)
    np.testing.assert_allclose(center, (logits[0, :3].mean(0) + logits[1, 0]) / 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "plain", "registers"),  # of facebookresearch/dinov2's hub models
    [
        (dinov2.vit_s14, 22_056_576, 22_058_112),
        (dinov2.vit_b14, 86_580_480, 86_583_552),
        (dinov2.vit_l14, 304_368_640, 304_372_736),
        (dinov2.vit_g14, 1_136_480_768, 1_136_486_912),
    ],
)
def test_backbones_have_the_published_sizes(make, plain, registers):
    for config, count in ((make(), plain), (make(registers=4), registers)):
        images = jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.float32)
        shapes = jax.eval_shape(dinov2.Backbone(config).init, jax.random.key(0), images)
        assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == count


def test_the_giants_head_has_the_published_size_and_its_budget_that_of_the_masks():
    c = dinov2.DINOv2Config(dinov2.vit_g14(image_size=224))
    features = jax.ShapeDtypeStruct((1, 1536), jnp.float32)
    shapes = jax.eval_shape(dino.Head(c.head).init, jax.random.key(0), features)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 58_593_664
    assert c.hidden == BlockMasks(grid=16, group=c.group).most


@pytest.mark.parametrize("assign", [dinov2.sinkhorn, dinov2.center_and_sharpen])
def test_a_step_keeps_every_shape_with_each_way_to_targets(assign):
    config = dataclasses.replace(dinov2.DINOv2Config.tiny(), assign=assign)
    assert BlockMasks(grid=4, group=config.group).most == config.hidden
    shapes = {"global_crops": (4, 2, 32, 32, 3), "masks": (4, 2, 16), "local_crops": (4, 1, 16, 16, 3)}
    one = {name: jax.ShapeDtypeStruct(x, bool if name == "masks" else jnp.uint8) for name, x in shapes.items()}
    model = dinov2.DINOv2(config)
    variables = jax.eval_shape(functools.partial(model.init, jax.random.key(0)), **one)
    variables["teacher"] = variables["params"]
    loss = functools.partial(dinov2.loss, model)
    value, aux = jax.eval_shape(loss, variables, one, jax.random.key(0), jnp.int32(1))
    assert value.shape == ()
    assert aux.collections == {"center": variables["center"]}


def test_a_batch_that_is_no_multiple_of_the_group_is_refused():
    with pytest.raises(ValueError, match="multiple of group=3 images, got 4"):
        dinov2.find_hidden(np.zeros((4, 2, 5), bool), group=3, most=2)


def test_no_gradient_reaches_the_teacher_or_the_targets():
    logits = np.random.default_rng(0).normal(size=(3, 2, 14)).astype(np.float32)
    for assign in (dinov2.sinkhorn, dinov2.center_and_sharpen):

        def value(logits, assign=assign):
            return assign(logits, np.ones((3, 2), bool), np.zeros(14, np.float32), 0.1, 0.9)[0][0, 0, 0]

        assert not jax.grad(value)(logits).any()


def test_crops_and_masks_that_do_not_fit_are_refused():
    views, masks = np.zeros((2, 2, 16, 16, 3), np.uint8), np.zeros((2, 2, 16), bool)
    model = dinov2.DINOv2(CONFIGS["giant"])
    shapes = functools.partial(jax.eval_shape, model.init, jax.random.key(0))
    with pytest.raises(ValueError, match=r"masks must be \[B 2 N\].* 4 x 4 of 4 pixels, got \[2, 2, 9\]"):
        shapes(views, masks[..., :9])
    with pytest.raises(ValueError, match=r"of the same images, got \[2, 2, .* and \[3, 1, "):
        shapes(views, masks, np.zeros((3, 1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"crops must be \[B V H W 3\].* got \[2, 16, 16, 3\]"):
        jax.eval_shape(dino.DINO(dino.DINOConfig.tiny()).init, jax.random.key(0), views[:, 0])
    with pytest.raises(ValueError, match="multiples of patch_size=4, got 3 x 3"):
        shapes(views, masks, np.zeros((2, 1, 3, 3, 3), np.uint8))
