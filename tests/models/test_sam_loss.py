"""SAM's training: who is imitated, and what is learned from. Appendix A of the paper, since there is no code of it.

The model is one whose answers are given, so that each number can be worked out from its masks.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.models import sam

RNG = np.random.default_rng(0)
SIDE = 16
WANTED = np.zeros((2, 3, SIDE, SIDE), bool)
WANTED[0, 0, 2:9, 3:12], WANTED[0, 1, 10:15, 1:5], WANTED[1, 0, 4:6, 7:15] = True, True, True
LOGITS = (WANTED[:, :, None] * 2 - 1 + 2 * RNG.normal(size=(2, 3, 4, SIDE, SIDE))).astype(np.float32)
SCORES = RNG.uniform(0, 1, (2, 3, 4)).astype(np.float32)
BATCH = {"images": np.zeros((2, SIDE, SIDE, 3), np.float32), "masks": WANTED}


class Given(nn.Module):
    """Answers what it was told, or with how many tokens it sees."""

    config: sam.SamConfig
    counting: bool = False

    def setup(self):
        self.logits = self.param("logits", nn.initializers.zeros, LOGITS.shape)
        self.scores = self.param("scores", nn.initializers.zeros, SCORES.shape)

    def encode_image(self, images, *, train):
        return images

    def encode_points(self, points, labels):
        return jnp.concatenate([points, labels[..., None]], -1)

    def decode(self, image, sparse, masks=None, *, multimask=True, counts=None):
        which = slice(1, None) if multimask else slice(0, 1)
        scores = self.scores[..., which]
        if self.counting and counts is not None:
            scores = scores * 0 + counts.sum(-1)[..., None]
        return sam.SamOutput(self.logits[:, :, which], scores)


def given(recipe: sam.Recipe, counting: bool = False) -> Given:
    return Given(dataclasses.replace(sam.SamConfig.tiny(), recipe=recipe), counting)


VARIABLES = {"params": {"logits": jnp.asarray(LOGITS), "scores": jnp.asarray(SCORES)}}
PRESENT = WANTED.any((-1, -2))


def account(recipe: sam.Recipe) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """focal, dice and squared error of each mask, [2 3 4], in float64."""
    x, t = LOGITS.astype(np.float64), np.broadcast_to(WANTED[:, :, None], LOGITS.shape)
    p = 1 / (1 + np.exp(-x))
    right = np.where(t, p, 1 - p)
    focal = (np.where(t, 0.25, 0.75) * (1 - right) ** 2 * -np.log(right)).mean((-1, -2))
    dice = 1 - (2 * (p * t).sum((-1, -2)) + 1) / (p.sum((-1, -2)) + t.sum((-1, -2)) + 1)
    iou = ((x > 0) & t).sum((-1, -2)) / np.maximum(((x > 0) | t).sum((-1, -2)), 1)
    return focal, dice, (SCORES - iou) ** 2


@pytest.mark.parametrize(("points", "again"), [(0, 0), (2, 2)])
def test_best_of_three_then_one_and_the_mean_over_rounds_and_objects(points, again):
    recipe = sam.Recipe(points=points, again=again)
    focal, dice, error = account(recipe)
    each = 20 * focal + dice + error
    first, later = each[..., 1:].min(-1), each[..., 0]
    expected = (first + (points + again) * later)[PRESENT].mean() / (1 + points + again)
    value, aux = sam.loss(given(recipe), VARIABLES, BATCH, jax.random.key(0), 0)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert aux.weight == 3
    parts = aux.metrics
    np.testing.assert_allclose(value, 20 * parts["focal"] + parts["dice"] + parts["iou_error"], rtol=1e-6)


def test_only_the_best_mask_of_what_is_there_learns():
    model = given(sam.Recipe(points=0, again=0))
    gradients = jax.grad(lambda v: sam.loss(model, v, BATCH, jax.random.key(0), 0)[0])(VARIABLES)["params"]
    focal, dice, error = account(model.config.recipe)
    best = (20 * focal + dice + error)[..., 1:].argmin(-1)
    wanted = PRESENT[..., None] & (np.arange(4) == best[..., None] + 1)
    np.testing.assert_array_equal(np.abs(gradients["logits"]).max((-1, -2)) > 0, wanted)
    np.testing.assert_array_equal(gradients["scores"] != 0, wanted)


def test_all_scores_learn_where_they_shall_rank():
    model = given(sam.Recipe(points=0, again=0, rank_all=True))
    gradients = jax.grad(lambda v: sam.loss(model, v, BATCH, jax.random.key(0), 0)[0])(VARIABLES)["params"]
    assert (gradients["scores"][PRESENT][:, 1:] != 0).all()
    assert ((np.abs(gradients["logits"]).max((-1, -2)) > 0).sum(-1)[PRESENT] == 1).all()


def test_each_round_sees_the_points_so_far():
    model = given(sam.Recipe(points=2, again=2), counting=True)
    x, t = LOGITS[:, :, 0] > 0, WANTED
    iou = ((x & t).sum((-1, -2)) / np.maximum((x | t).sum((-1, -2)), 1))[PRESENT]
    first = account(model.config.recipe)

    def error(counts: tuple[int, ...]) -> float:
        best = (20 * first[0] + first[1] + first[2])[..., 1:].argmin(-1)[..., None]
        errors = [np.take_along_axis(first[2][..., 1:], best, -1)[..., 0][PRESENT].mean()]
        return float(np.mean(errors + [((count - iou) ** 2).mean() for count in counts]))

    # Two tokens of the first prompt; one of the first three rounds brings no point, and the last one never does.
    orders = [error(counts) for counts in ((2, 3, 4, 4), (3, 3, 4, 4), (3, 4, 4, 4))]
    run = jax.jit(lambda rng: sam.loss(model, VARIABLES, BATCH, rng, 0)[1].metrics["iou_error"])
    found = [float(run(jax.random.key(n))) for n in range(20)]
    nearest = [int(np.argmin(np.abs(np.array(orders) - value))) for value in found]
    np.testing.assert_allclose(found, [orders[n] for n in nearest], rtol=1e-5)
    assert set(nearest) == {0, 1, 2}


def test_the_first_prompt_is_a_point_inside_or_a_box_that_is_shaken():
    wanted = np.broadcast_to(WANTED[0, :1], (400, 1, SIDE, SIDE))
    points, labels = sam.first_prompt(jax.random.key(0), wanted, 2 * SIDE, sam.Recipe(most_noise=0.02))
    box = np.asarray(labels[:, 0, 0] == sam.TOP_LEFT)
    assert 150 < box.sum() < 250
    np.testing.assert_array_equal(labels[:, 0][box], [[sam.TOP_LEFT, sam.BOTTOM_RIGHT]] * box.sum())
    np.testing.assert_array_equal(labels[:, 0][~box], [[sam.OBJECT, sam.NOT_A_POINT]] * (~box).sum())
    # In a square twice as large, pixel 3 is pixels 6 and 7, and its middle is 6.5.
    place = (np.asarray(points[:, 0, 0][~box]) - 0.5) / 2
    np.testing.assert_array_equal(place, place.round())
    assert ((place >= [3, 2]) & (place <= [11, 8])).all()
    shaken = np.asarray(points[:, 0][box]) - [[6, 4], [24, 18]]
    assert 0.5 < np.abs(shaken).max() <= 0.02 * 2 * SIDE + 1e-5
    free = sam.first_prompt(jax.random.key(0), wanted, 2 * SIDE, sam.Recipe(boxes=1.0, most_noise=9))[0][:, 0]
    deviation = (np.asarray(free) - [[6, 4], [24, 18]]).std((0, 1))
    np.testing.assert_allclose(deviation, [0.1 * 18, 0.1 * 14], rtol=0.15)


def test_corrections_point_at_what_is_wrong():
    wanted = np.broadcast_to(WANTED[0, :1], (200, 1, SIDE, SIDE))
    shown = wanted.copy()
    shown[:, :, 2, 3], shown[:, :, 0, 0] = False, True  # one is missing, one too many
    points, labels = (np.asarray(x)[:, 0] for x in sam.correction(jax.random.key(0), shown, wanted, SIDE))
    seen = {(float(x), float(y), int(label)) for (x, y), label in zip(points, labels, strict=True)}
    assert seen == {(3, 2, sam.OBJECT), (0, 0, sam.BACKGROUND)}
    points, labels = (np.asarray(x)[:, 0] for x in sam.correction(jax.random.key(0), wanted, wanted, SIDE))
    assert (labels == sam.OBJECT).all()
    assert wanted[0, 0][points[:, 1].astype(int), points[:, 0].astype(int)].all()


@pytest.mark.train
def test_a_tiny_model_learns_scenes():
    import optax

    config = dataclasses.replace(sam.SamConfig.tiny(), recipe=sam.Recipe(points=1, again=0))
    model, rng = sam.SAM(config), np.random.default_rng(0)
    masks = np.zeros((4, 2, 32, 32), bool)
    for scene in masks:
        for n, mask in enumerate(scene):
            top, left = rng.integers(0, 8), rng.integers(0, 8) + 16 * n
            mask[top : top + 14, left : left + 8] = True
    images = np.where(masks.any(1)[..., None], 200, 20).astype(np.uint8).repeat(3, -1)
    batch = {"images": images, "masks": masks}
    variables, adam = model.init(jax.random.key(0), images), optax.adam(3e-3)
    state = adam.init(variables)

    @jax.jit
    def step(variables, state, rng):
        (value, _), gradients = jax.value_and_grad(lambda v: sam.loss(model, v, batch, rng, 0), has_aux=True)(variables)
        updates, state = adam.update(gradients, state)
        return optax.apply_updates(variables, updates), state, value

    losses = []
    for n in range(60):
        variables, state, value = step(variables, state, jax.random.key(n))
        losses.append(float(value))
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
