"""A classifier made of names against one made of labels, counted by hand."""

import jax
import lookup_toys as toys
import numpy as np
import pytest

from mmjax.evals import zero_shot

KEY = jax.random.key(0)
NAMES = ("cat", "dog", "car", "bus")
GROUPS = ("animal-mammal", "transport-ground", "empty")
VOCABULARY = (*NAMES, "animal mammal", "transport ground")
# cat and dog average to the x axis, car and bus to the y axis; the labels' own texts point the other way.
TEXT = [[1, 1], [1, -1], [1, 1], [-1, 1], [0, 1], [1, 0]]
IMAGE = [[5, 1], [5, -1], [1, 5], [5, 2]]  # by the means: animal, animal, transport, animal


def measure(image=IMAGE, groups=(0, 0, 1, 1)):
    data = toys.Data(NAMES, {"test": toys.Split((0, 1, 2, 3), (0, 1, 2, 3), groups)}, GROUPS, VOCABULARY)
    return zero_shot.ZeroShot("test")(toys.Lookup(), toys.variables(image, TEXT), data, KEY)


def test_classes_are_means_of_names_or_labels():
    metrics = measure().metrics
    assert metrics["test/subgroup_accuracy"] == 3 / 4
    assert metrics["test/subgroup_label_accuracy"] == 1 / 4
    assert metrics["test/subgroup_accuracy_chance"] == metrics["test/subgroup_label_accuracy_chance"] == 1 / 2


def test_always_answering_the_largest_class_is_told():
    assert measure(groups=(0, 0, 0, 1)).metrics["test/subgroup_accuracy_majority"] == 3 / 4


def test_an_image_between_the_classes_is_not_counted():
    assert measure(image=[[1, 1]] * 4).metrics["test/subgroup_accuracy"] == 0


def test_every_member_weighs_the_same_and_directions_have_length_one():
    names = np.array([[1.0, 0], [0, 1], [0, 1], [0.6, 0.8]])
    members = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], bool)
    np.testing.assert_allclose(
        zero_shot.mean_of_members(names, members), [[1 / 5**0.5, 2 / 5**0.5], [0.6, 0.8]], rtol=1e-9
    )


def test_the_picture_has_a_tile_for_each_image():
    one, two = (zero_shot.answers(np.zeros((n, 8, 8, 3), np.uint8), np.eye(n, 4), np.zeros(n), NAMES) for n in (1, 2))
    assert two.shape[1] > one.shape[1]
    assert measure().pictures.keys() == {"test zero-shot"}


def test_chance_counts_the_classes_that_occur():
    assert measure(groups=(0, 0, 0, 0)).metrics["test/subgroup_accuracy_chance"] == pytest.approx(1)
