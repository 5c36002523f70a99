"""Retrieval of embeddings that were chosen by hand."""

import jax
import lookup_toys as toys
import numpy as np
import pytest

from mmjax.evals.retrieval import Retrieval

KEY = jax.random.key(0)


def measure(image, text, labels, **fields):
    names = tuple(f"name {i}" for i in range(len(text)))
    data = toys.Data(names, {"held out": toys.Split(tuple(range(len(image))), tuple(labels))})
    return Retrieval("held out", **fields)(toys.Lookup(), toys.variables(image, text), data, KEY)


def test_equal_embeddings_are_found_first():
    axes = np.eye(30)
    metrics = measure(axes, axes, range(30)).metrics
    assert metrics["held out/R@1"] == metrics["held out/text_to_image_R@1"] == 1
    assert metrics["held out/median_rank"] == metrics["held out/text_to_image_median_rank"] == 1
    assert metrics["held out/R@5_chance"] == pytest.approx(5 / 30)


def test_both_directions_of_a_case_counted_by_hand():
    text = [[1, 0], [0, 1], [-1, 0], [0, -1]]  # the last name has no image, and is a wrong answer to all
    image = [[3, 1], [-1, 3], [1, 3], [-2, -1], [-3, 1]]  # names 0, 1, 0, 2, 2; nearest names 0, 1, 1, 2, 2
    metrics = measure(image, text, [0, 1, 0, 2, 2]).metrics
    assert metrics["held out/R@1"] == 4 / 5
    assert metrics["held out/R@5"] == 1  # more than there are names
    assert metrics["held out/median_rank"] == 1
    # Name 0 finds image 0 first; name 1 has images 1 and 2 at the same score, and ties are lost; name 2 finds image 4.
    assert metrics["held out/text_to_image_R@1"] == 2 / 3
    assert (metrics["held out/images"], metrics["held out/names"]) == (5, 4)


def test_random_embeddings_score_chance():
    rng = np.random.default_rng(0)
    result = measure(rng.normal(size=(600, 32)), rng.normal(size=(600, 32)), rng.permutation(600))
    metrics = {key.removeprefix("held out/"): value for key, value in result.metrics.items()}
    for direction in ("", "text_to_image_"):
        chance = metrics[f"{direction}R@10_chance"]
        assert abs(metrics[f"{direction}R@10"] - chance) < 4 * np.sqrt(chance / 600)
        assert abs(metrics[f"{direction}median_rank"] - 300) < 4 * 600 * 0.5 / np.sqrt(600)


def test_a_collapsed_model_scores_nothing():
    metrics = measure(np.ones((20, 3)), np.ones((20, 3)), range(20)).metrics
    assert metrics["held out/R@10"] == metrics["held out/text_to_image_R@10"] == 0
    assert metrics["held out/median_rank"] == 20


def test_pictures_are_given_under_the_splits_name():
    pictures = measure(np.eye(7), np.eye(7), range(7)).pictures
    assert set(pictures) == {"held out gallery", "held out similarity"}
    for picture in pictures.values():
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
