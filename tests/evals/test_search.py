"""Asking a model whose embeddings were chosen by hand."""

import dataclasses

import jax
import lookup_toys as toys
import numpy as np
import pytest

from mmjax.evals import search
from mmjax.nn.outputs import Request

KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Data(toys.Data):
    image_size: int = 1


IMAGE = [[1, 0], [1, 1], [0, 1], [-1, 0]]
TEXT = [[0, 1], [1, 0.1], [-1, 0.1]]
NAMES = ("up", "right", "left")
DATA = Data(NAMES, {"test": toys.Split((0, 1, 2, 3), (1, 1, 0, 2))})


@pytest.fixture
def variables():
    made = toys.variables(IMAGE, TEXT)
    made["params"]["logit_scale"] = np.log(10.0)
    return made


def ask(variables, **request):
    return search.Search("test", shown=2)(toys.Lookup(), variables, Request(**request), DATA, KEY)


def test_a_text_finds_its_nearest_pictures_best_first(variables):
    answer = ask(variables, texts=("up", "left"))
    assert [line.split()[-1] for line in answer.text.splitlines()] == ["up", "up", "right", "left", "left", "up"]
    assert "+1.000  up" in answer.text
    assert answer.pictures["nearest"].dtype == np.uint8


def test_an_image_is_described_by_the_texts_given_or_by_all_names(variables):
    [image] = toys.pictures([0])
    cosines = np.array([0, 1 / np.hypot(1, 0.1), -1 / np.hypot(1, 0.1)])
    expected = np.exp(10 * cosines) / np.exp(10 * cosines).sum()
    answer = ask(variables, images=(image,))
    assert answer.text.splitlines() == [f"  {expected[1]:6.1%}  right", f"  {expected[0]:6.1%}  up"]
    two = ask(variables, images=(image,), texts=("left", "up")).text
    assert two.splitlines() == [f"  {1 / (1 + np.exp(10 * cosines[2])):6.1%}  up", "    0.0%  left"]


def test_probabilities_are_a_softmax_that_does_not_overflow():
    np.testing.assert_allclose(search.probabilities(np.array([0.3, 0.1]), 1e6), [1, 0])
    found = search.probabilities(np.array([[0.2, 0.1]]), 5.0)
    np.testing.assert_allclose(found, [[np.exp(1) / (np.exp(1) + np.exp(0.5)), 1 / (1 + np.exp(0.5))]])


def test_chances_are_each_texts_own_where_the_model_has_a_bias():
    cosines, scale = np.array([[0.2, 0.1]]), np.log(5.0)
    np.testing.assert_allclose(search.chances(cosines, {"logit_scale": scale}), search.probabilities(cosines, 5.0))
    found = search.chances(cosines, {"logit_scale": scale, "logit_bias": np.array(-1.0)})
    np.testing.assert_allclose(found, [[0.5, 1 / (1 + np.exp(0.5))]])


def test_a_picture_of_any_shape_becomes_the_models_square():
    assert search.square(np.zeros((5, 40, 3), np.uint8), 16).shape == (16, 16, 3)


def test_an_empty_request_is_refused(variables):
    with pytest.raises(ValueError, match="nothing to search for"):
        ask(variables)
