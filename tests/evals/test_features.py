"""Encoding in batches loses nothing, and places in a ranking are never too good."""

import itertools

import jax
import lookup_toys as toys
import numpy as np
import pytest

from mmjax.evals import features
from mmjax.parallel import mesh as meshes

RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.normal(size=(300, 6)), RNG.normal(size=(20, 6))


def lengths_one(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def test_encoding_a_split_that_is_no_multiple_of_the_batch_compiles_once(monkeypatch):
    monkeypatch.setattr(features, "BATCH_SIZE", 64)
    compiled = features._apply._cache_size()
    rows = RNG.permutation(300)[:150]  # batches of 64, 64 and 22
    found = features.encode_images(toys.Lookup(), toys.variables(IMAGE, TEXT), toys.pictures(rows))
    np.testing.assert_allclose(found, lengths_one(IMAGE[rows]), rtol=1e-6)
    assert found.dtype == np.float32
    assert features._apply._cache_size() == compiled + 1


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="nothing to encode image: the split or the list is empty"):
        features.encode_images(toys.Lookup(), toys.variables(IMAGE, TEXT), np.zeros((0, 1, 1, 3), np.uint8))


def test_a_name_is_the_mean_of_its_sentences():
    data = toys.Data(("cat", "dog"), {}, vocabulary=("a cat", "a dog", "big cat", "big dog"))
    found = features.encode_names(
        toys.Lookup(), toys.variables(IMAGE, TEXT), data.tokenize, data.names, ("a {}", "big {}")
    )
    unit = lengths_one(TEXT)
    np.testing.assert_allclose(found, lengths_one(np.stack([unit[0] + unit[2], unit[1] + unit[3]])), rtol=1e-5)


@pytest.mark.parametrize("shape", [{"data": 8}, {"data": 2, "fsdp": 4}])
def test_on_a_mesh_the_embeddings_are_the_same(shape):
    variables, images = toys.variables(IMAGE, TEXT), toys.pictures(np.arange(27))
    mesh = meshes.MeshShape(**shape).build()
    spread_out = jax.device_put(variables, jax.NamedSharding(mesh, jax.P(None, None)))
    spread_out["params"]["image"] = jax.device_put(IMAGE[:296], jax.NamedSharding(mesh, jax.P(("data", "fsdp"))))
    with jax.set_mesh(mesh):
        found = features.encode_images(toys.Lookup(), spread_out, images)
    np.testing.assert_allclose(found, features.encode_images(toys.Lookup(), variables, images), rtol=1e-6)


def test_ranks_of_a_hand_made_case():
    scores = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    right = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 1]], bool)
    np.testing.assert_array_equal(features.ranks(scores, right), [1, 3, 2, 2])  # the best of two right ones counts


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
def test_a_model_that_says_the_same_of_everything_comes_last(value):
    right = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(features.ranks(np.full((4, 4), value), right), 4)


def test_a_score_that_is_no_number_hurts_only():
    right = np.array([[True, False, False]])
    assert features.ranks(np.array([[np.nan, 0.2, 0.1]]), right) == 3
    assert features.ranks(np.array([[0.9, np.nan, 0.1]]), right) == 2


def test_a_query_without_a_right_answer_is_refused():
    with pytest.raises(ValueError, match="1 of 2 queries have no right candidate"):
        features.ranks(np.zeros((2, 3)), np.array([[True, False, False], [False] * 3]))


def test_chance_is_that_of_all_orders():
    right = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 1, 0], [0, 0, 0, 0, 1]], bool)
    within = np.zeros((3, 5))
    for order in itertools.permutations(range(5)):
        for q in range(3):
            within[q, min(order.index(c) for c in np.flatnonzero(right[q])) :] += 1 / 120
    np.testing.assert_allclose(features.chance_within(right), within.mean(axis=0), rtol=1e-9)


def test_median_chance_of_one_right_name_in_1555_is_778():
    metrics = features.ranking_metrics("", np.zeros((1, 1555)), np.arange(1555)[None] == 3, (10,))
    assert metrics["median_rank_chance"] == 778
    assert metrics["R@10_chance"] == pytest.approx(10 / 1555)


def test_what_a_picture_shows_is_spread_over_all():
    np.testing.assert_array_equal(features.spread(9, 3), [0, 4, 8])
    np.testing.assert_array_equal(features.spread(2, 3), [0, 1])
