"""DINO against facebookresearch/dino's own numbers (tests/goldens/make_dino.py), then what users rely on."""

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

from mmjax.models import dino, vit
from mmjax.train import optim, trees

GOLDEN = dict(np.load(Path(__file__).parents[1] / "goldens" / "dino.npz"))
VISION = vit.ViTConfig(16, 4, width=12, depth=2, num_heads=3, hidden=48, **dino.as_published(drop_path=0.0))
HEAD = dino.HeadConfig(hidden=20, bottleneck=6, prototypes=14)
CONFIG = dino.DINOConfig(VISION, HEAD, teacher_temperature=(0.04, 0.07), ramp=2, epoch=2)
MODEL = dino.DINO(CONFIG)
STEPS = len(GOLDEN["losses"])


def params(prefix: str) -> dict:
    flat = dino_names.group(GOLDEN, prefix)
    return {"backbone": dino_names.backbone(flat), "head": dino_names.head(flat)}


def views(it: int) -> dict:
    """Beside each other in a row of the batch, channels last."""
    crops = [GOLDEN[f"views/{it}/{v}"].transpose(0, 2, 3, 1) for v in range(4)]
    return {"global_crops": np.stack(crops[:2], 1), "local_crops": np.stack(crops[2:], 1)}


def start() -> dict:
    return {"params": params("before"), "teacher": params("before"), "center": {"cls": np.zeros(14, np.float32)}}


def test_loss_gradient_and_center_equal_the_originals():
    part = dino_names.group(GOLDEN, "loss")
    student, teacher = (part[name].transpose(1, 0, 2) for name in ("student", "teacher"))

    def value(student):
        return dino.self_distillation(student, dino.centred(teacher, part["center"], 0.04), 0.1)

    ours, gradient = jax.value_and_grad(value)(student)
    close("loss", ours, part["value"], relative=1e-5)
    close("gradient of the logits", gradient.transpose(1, 0, 2), part["gradient"], relative=1e-4)
    close("center", dino.moved_center(part["center"], teacher, 0.9), part["moved_center"], relative=1e-5)


def test_the_teachers_temperature_rises_epoch_by_epoch():
    found = [dino.teacher_temperature(CONFIG, jnp.int32(i)) for i in range(12)]
    np.testing.assert_allclose(found, np.repeat(GOLDEN["loss/temperatures"], 2), rtol=1e-6)
    flat = dataclasses.replace(CONFIG, ramp=0)
    np.testing.assert_allclose([dino.teacher_temperature(flat, i) for i in (0, 5)], 0.07, rtol=1e-6)
    assert float(dino.ramp(1.0, 3.0, 5, 2)) == pytest.approx(2.0)


@jax.jit
def differentiated(variables, batch, it):
    """((loss, aux), gradients), compiled once."""

    def value(params):
        return dino.loss(MODEL, {**variables, "params": params}, batch, jax.random.key(0), it)

    return jax.value_and_grad(value, has_aux=True)(variables["params"])


def test_gradients_of_a_step_equal_the_originals():
    (value, _), found = differentiated(start(), views(0), jnp.int32(0))
    close("loss", value, GOLDEN["losses"][0], relative=1e-5)
    close_trees(found, params("gradients"), relative=1e-4)


def test_three_epochs_of_training_equal_the_originals():
    """Schedules, clipping array by array, the frozen last layer, decay, center and teacher."""
    optimizer = optim.CosineAdamW(0.02, warmup=2, end=1e-3, eps=1e-3, clip=0.05, frozen_steps=2)
    average, variables = optim.ema("params", "teacher", optim.cosine(0.8, 1.0, STEPS)), start()
    transform = optimizer.build(STEPS, variables["params"])
    state, update = transform.init(variables["params"]), jax.jit(transform.update)
    for it in range(STEPS):
        (value, aux), gradients = differentiated(variables, views(it), jnp.int32(it))
        close(f"loss {it}", value, GOLDEN["losses"][it], relative=2e-5)
        close(f"center {it}", aux.collections["center"]["cls"], GOLDEN[f"center/{it}"], relative=1e-4)
        changes, state = update(gradients, state, variables["params"])
        moved = {**variables, **aux.collections, "params": optax.apply_updates(variables["params"], changes)}
        variables = average(moved, it)
    for name, ours in (("student", "params"), ("teacher", "teacher")):
        close_trees(jax.tree.map(np.asarray, variables[ours]), params(name), relative=1e-4)


def test_the_frozen_layer_and_only_it_stays_in_the_first_epoch():
    assert not np.allclose(
        params("student")["head"]["prototypes"]["kernel"], params("before")["head"]["prototypes"]["kernel"]
    )
    optimizer = optim.CosineAdamW(0.02, frozen_steps=2)
    transform, tree = optimizer.build(4, params("before")), jax.tree.map(jnp.asarray, params("before"))
    changes, _ = jax.jit(transform.update)(jax.tree.map(jnp.ones_like, tree), transform.init(tree), tree)
    moved = {jax.tree_util.keystr(path, simple=True, separator="/"): bool(x.any())
             for path, x in jax.tree_util.tree_leaves_with_path(changes)}  # fmt: skip
    assert {path for path, one in moved.items() if not one} == {"head/prototypes/kernel", "head/prototypes/gain"}


def test_the_gain_stands_still_where_the_original_normalises_the_last_layer():
    kept = trees.leaves(trees.select(params("before"), dino.GAIN_FIXED))
    assert set(trees.leaves(params("before"))) - set(kept) == {"head/prototypes/gain"}


@pytest.fixture(scope="module")
def backbone():
    """features and attention of the golden's ViT, jitted."""
    tree = params("student")["backbone"]
    model = vit.ViT(VISION)
    return jax.jit(lambda images: model.apply({"params": tree}, images).pooler_output), tree


def test_features_at_the_grids_own_size_and_at_another_equal_the_originals(backbone):
    encode, _ = backbone
    close("features", encode(views(0)["global_crops"][:, 0]), GOLDEN["features"], relative=1e-5)
    wide = GOLDEN["wide_images"].transpose(0, 2, 3, 1)
    close("features of 5 x 6 patches", encode(wide), GOLDEN["wide_features"], relative=1e-5)


def test_attention_of_the_class_token_equals_the_originals(backbone):
    variables = start() | {"params": params("student")}
    found = jax.jit(lambda images: MODEL.apply(variables, images, method="attend"))(views(0)["global_crops"][:, 0])
    close("attention", found, GOLDEN["attention"], relative=1e-5)


def test_views_are_read_side_by_side_as_one_by_one():
    variables, batch = start(), views(1)
    out = jax.jit(functools.partial(MODEL.apply, variables))(**batch)
    assert (out.features.shape, out.logits.shape) == ((3, 4, 12), (3, 4, 14))
    one = jax.jit(lambda crops: MODEL.apply(variables, crops))(batch["local_crops"][1:2, 1:])
    np.testing.assert_allclose(out.logits[1, 3], one.logits[0, 0], atol=1e-5)


def test_prototypes_have_the_length_of_their_gain():
    kernel, gain = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32), np.arange(1.0, 6, dtype=np.float32)
    head = dino.Prototypes(5)
    weight = head.apply({"params": {"kernel": kernel, "gain": gain}}, np.eye(6, dtype=np.float32))
    np.testing.assert_allclose(np.linalg.norm(weight, axis=0), gain, rtol=1e-5)
    np.testing.assert_allclose(weight / gain, kernel / np.linalg.norm(kernel, axis=0), rtol=1e-5)


def test_no_gradient_reaches_the_teacher():
    def value(teacher):
        return dino.self_distillation(np.ones((1, 3, 5)), dino.centred(teacher, np.zeros(5), 0.1), 0.1)

    assert not jax.grad(value)(np.random.default_rng(0).normal(size=(1, 2, 5)).astype(np.float32)).any()


def test_what_pushes_features_apart_is_added_to_the_loss():
    def push(features):
        return 0.01 * (features**2).sum()

    pushed = dino.DINO(dataclasses.replace(CONFIG, spread=push))
    value, aux = jax.jit(lambda v, b: dino.loss(pushed, v, b, jax.random.key(0), 0))(start(), views(0))
    features = jax.jit(MODEL.apply)(start(), **views(0)).features
    assert features.shape[1] == 4
    np.testing.assert_allclose(value, GOLDEN["losses"][0] + push(features[:, :2]), rtol=1e-5)
    assert aux.metrics["loss"] == value


def test_health_tells_both_kinds_of_collapse():
    rng, one_hot = np.random.default_rng(0), np.eye(6, dtype=np.float32)
    features = rng.normal(size=(3, 2, 4)).astype(np.float32)
    spread = dino.health(features, one_hot.reshape(3, 2, 6))  # each view has an answer of its own
    assert (float(spread["teacher_entropy"]), float(spread["batch_entropy"])) == (0, pytest.approx(np.log(6)))
    same = dino.health(features, np.tile(one_hot[2], (3, 2, 1)))  # one answer for all
    assert (float(same["teacher_entropy"]), float(same["batch_entropy"])) == (0, 0)
    vague = dino.health(features, np.full((3, 2, 6), 1 / 6, np.float32))  # all answers for all
    assert float(vague["teacher_entropy"]) == pytest.approx(np.log(6)) == float(vague["batch_entropy"])

    eigenvalues = np.linalg.eigvalsh(np.cov(features.reshape(6, 4).T, bias=True))
    wanted = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    np.testing.assert_allclose(spread["feature_rank"], wanted, rtol=1e-4)
    line = np.outer(np.arange(6), rng.normal(size=4)).reshape(3, 2, 4).astype(np.float32)
    assert float(dino.health(line, one_hot.reshape(3, 2, 6))["feature_rank"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("config", "count"),  # of facebookresearch/dino's modules
    [
        (dino.vit_s16, 21_665_664),
        (dino.vit_s8, 21_670_272),
        (dino.vit_b16, 85_798_656),
        (dino.vit_b8, 85_807_872),
    ],
)
def test_backbones_have_the_published_sizes(config, count):
    config = config()
    side = config.image_size
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(vit.ViT(config).init, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == count


def test_the_small_one_is_as_small_as_it_says():
    views = jax.ShapeDtypeStruct((1, 2, 32, 32, 3), jnp.uint8)
    shapes = jax.eval_shape(dino.DINO(dino.small()).init, jax.random.key(0), views)
    assert round(sum(x.size for x in jax.tree.leaves(shapes["params"])) / 1e6, 2) == 0.56


@pytest.mark.parametrize(("width", "count"), [(384, 22_352_128), (768, 23_138_560)])
def test_heads_have_the_published_sizes(width, count):
    features = jax.ShapeDtypeStruct((1, width), jnp.float32)
    shapes = jax.eval_shape(dino.Head(dino.HeadConfig()).init, jax.random.key(0), features)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


def test_initial_values_are_the_originals():
    config = dataclasses.replace(CONFIG, vision=dataclasses.replace(VISION, width=48, hidden=192))
    shapes = {
        name: np.zeros((1, n, s, s, 3), np.float32) for name, n, s in (("global_crops", 2, 16), ("local_crops", 1, 8))
    }
    tree = jax.jit(functools.partial(dino.DINO(config).init, **shapes))(jax.random.key(0))
    tree, center = tree["params"], tree["center"]["cls"]
    layers, head = tree["backbone"]["layers"], tree["head"]
    for x in (
        layers["attention"]["query"]["kernel"],
        layers["mlp"]["up"]["kernel"],
        head["up"]["kernel"],
        tree["backbone"]["pos_embed"],
    ):
        assert float(jnp.std(x)) == pytest.approx(0.02, rel=0.1)
    for bound, x in ((48**-0.5, tree["backbone"]["patch_embed"]["kernel"]), (6**-0.5, head["prototypes"]["kernel"])):
        assert float(jnp.abs(x).max()) == pytest.approx(bound, rel=0.1)
    assert not any(x.any() for x in (layers["mlp"]["up"]["bias"], head["down"]["bias"], center))
    np.testing.assert_array_equal(head["prototypes"]["gain"], 1)
    assert not np.array_equal(layers["mlp"]["up"]["kernel"][0], layers["mlp"]["up"]["kernel"][1])


def test_in_training_branches_of_the_student_are_left_out():
    config = dataclasses.replace(CONFIG, vision=dataclasses.replace(VISION, drop_path=0.5))
    variables, batch = start(), views(0)

    @jax.jit
    def logits(rng):
        return dino.DINO(config).apply(variables, **batch, train=True, rngs={"drop_path": rng}).logits

    one, again, other = (logits(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)


def test_attention_of_a_single_block_is_refused():
    with pytest.raises(ValueError, match="two or more blocks"):
        dino.class_attention(dataclasses.replace(VISION, depth=1), {}, np.zeros((1, 16, 16, 3), np.float32))
