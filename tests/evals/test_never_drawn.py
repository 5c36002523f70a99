"""Drawn beside the true drawing, which nobody saw; and how a picture comes about."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data import emoji_drawings
from mmjax.data.emoji_pictures import NAME, EmojiPictures
from mmjax.evals import judges
from mmjax.evals.never_drawn import NeverDrawn, others, root_mean_square
from mmjax.evals.progress import Progress

DATA = EmojiPictures(NAME)


def fresh() -> tuple[judges.Judge, judges.Judge]:
    config = judges.JudgeConfig.tiny()
    models = judges.ClassJudge(config, tuple(emoji_drawings.counts().values())), judges.TwinJudge(config)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    return tuple(judges.Judge(model, jax.jit(model.init)(jax.random.key(0), images)) for model in models)


def test_the_copy_is_another_artists_drawing_of_the_same():
    (_, labels), (_, trained) = DATA.drawings("validation"), DATA.drawings("train")
    rows = others(labels, trained)
    known = rows >= 0
    assert known.mean() > 0.95
    np.testing.assert_array_equal(trained.concept[rows[known]], labels.concept[known])
    assert np.all(trained.artist[rows[known]] != labels.artist[known])


@pytest.mark.parametrize("perfect", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_is_drawn_right_is_closer_to_the_truth_than_a_copy_is(perfect):
    images, labels = DATA.drawings("validation")
    table = np.zeros((1_555, 7, 32, 32, 3), np.uint8)
    table[labels.concept, labels.artist] = images

    def draw(model, variables, rng, label):
        made = jnp.asarray(table)[label[:, 0], label[:, 1]]
        return made if perfect else jnp.zeros_like(made)

    found = NeverDrawn(draw, count=20, judges=fresh, batch=10)(None, {}, DATA, jax.random.key(0))
    metrics = found.metrics
    for name in ("a", "b", "pixels"):
        assert (metrics[f"validation/to_true_{name}"] < 1e-3) == perfect
        assert metrics[f"validation/other_to_true_{name}"] > 1e-3
    assert metrics["validation/closer_than_copy_pixels"] == (1.0 if perfect else 0.0)
    assert found.pictures["validation never drawn"].ndim == 3


def test_distances_of_pixels_are_of_colours_between_0_and_1():
    a, b = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 51, np.uint8)
    np.testing.assert_allclose(root_mean_square(a, b), [0.2], rtol=1e-6)


def test_steps_are_shown_side_by_side_and_one_after_the_other():
    def progress(model, variables, rng, label):
        return jnp.stack([jnp.full((len(label), 32, 32, 3), 10 * n, jnp.uint8) for n in range(5)])

    pictures = Progress(progress, count=4)(None, {}, DATA, jax.random.key(0)).pictures
    assert pictures["validation drawn"].ndim == 4
    assert len(pictures["validation drawn"]) == 5
    assert pictures["validation step by step"].ndim == 3
