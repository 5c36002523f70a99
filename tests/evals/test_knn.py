"""k nearest neighbours against loops."""

import jax
import lookup_toys as toys
import numpy as np
import pytest

from mmjax.evals import features, knn

RNG = np.random.default_rng(0)


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def test_votes_equal_a_loop():
    test, train, groups = unit(RNG.normal(size=(5, 3))), unit(RNG.normal(size=(30, 3))), RNG.integers(0, 4, 30)
    expected = np.zeros((5, 4))
    for n in range(5):
        cosines = [float(test[n] @ x) for x in train]
        nearest = sorted(range(30), key=lambda m: cosines[m])[-7:]
        for m in nearest:
            expected[n, groups[m]] += np.exp((cosines[m] - max(cosines)) / 0.1)
    np.testing.assert_allclose(knn.votes(test, train, groups, 4, k=7, temperature=0.1), expected, rtol=1e-6)


def test_more_neighbours_than_there_are_images_means_all():
    train, groups = unit(RNG.normal(size=(5, 3))), np.array([0, 1, 1, 2, 2])
    few, all_of_them = (knn.votes(train, train, groups, 3, k, 0.1) for k in (5, 50))
    np.testing.assert_allclose(few, all_of_them)


def clusters(spread):
    centres = 10 * np.eye(4)[RNG.integers(0, 4, 80)]
    image = centres + spread * RNG.normal(size=(80, 4))
    group = tuple(int(x) for x in centres.argmax(-1))
    splits = {
        "train": toys.Split(tuple(range(60)), (0,) * 60, group[:60]),
        "test": toys.Split(tuple(range(60, 80)), (0,) * 20, group[60:]),
    }
    return toys.variables(image, np.eye(4)), toys.Data(("a",), splits, ("p", "q", "r", "s"))


def test_clusters_are_told_apart_and_noise_is_not():
    for spread, low, high in ((0.5, 1, 1), (1000, 0, 0.6)):
        variables, data = clusters(spread)
        metrics = knn.KNN("test", k=5)(toys.Lookup(), variables, data, jax.random.key(0)).metrics
        assert low <= metrics["test/knn_subgroup_accuracy"] <= high
        assert metrics["test/knn_subgroup_accuracy_chance"] == 1 / 4


class FewerGroupsInTest(toys.Data):
    def groups(self, split):
        rows, names = super().groups(split)
        return rows, names[:2] if split == "test" else names


def test_splits_with_different_groups_are_refused():
    variables, data = clusters(1)
    data = FewerGroupsInTest(data.names, data.splits, data.group_names)
    with pytest.raises(ValueError, match=r"the groups of 'train' and 'test' differ \(4 and 2 labels\)"):
        knn.KNN("test")(toys.Lookup(), variables, data, jax.random.key(0))


def test_the_nearest_drawing_names_the_concept_and_concepts_without_drawings_are_not_asked_for():
    image = np.array([[1, 0], [0, 1], [-1, 0], [0.9, 0.1], [0.1, 0.9], [-0.1, 0.9], [0, -1]], np.float64)
    splits = {
        "train": toys.Split((0, 1, 2), (0, 1, 2), (0, 0, 0)),
        "test": toys.Split((3, 4, 5, 6), (0, 1, 2, 3), (0,) * 4),
    }
    data = toys.Data(("a", "b", "c", "d"), splits, ("p",))
    metrics = knn.Nearest("test")(toys.Lookup(), toys.variables(image, np.eye(4)), data, jax.random.key(0)).metrics
    assert metrics["test/concept_R@1"] == pytest.approx(2 / 3)  # the third is nearest to the second concept's
    assert metrics["test/concept_R@1_chance"] == pytest.approx(1 / 3)
    assert metrics["test/concept_median_rank"] == 1


def test_nothing_to_find_is_refused():
    splits = {"train": toys.Split((0,), (0,), (0,)), "test": toys.Split((1,), (1,), (0,))}
    data, variables = toys.Data(("a", "b"), splits, ("p",)), toys.variables(np.eye(2), np.eye(2))
    with pytest.raises(ValueError, match="no concept of 'test' is in 'train'"):
        knn.Nearest("test")(toys.Lookup(), variables, data, jax.random.key(0))


def test_no_neighbours_are_refused_and_nan_is_nobodys_friend():
    train, groups = unit(RNG.normal(size=(5, 3))), np.array([0, 1, 1, 2, 2])
    with pytest.raises(ValueError, match="k must be at least 1 neighbour, got 0"):
        knn.votes(train, train, groups, 3, 0, 0.1)
    broken = train.copy()
    broken[1] = np.nan
    found = knn.votes(broken, train, groups, 3, 2, 0.1)
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2, 3, 4]], knn.votes(train, train, groups, 3, 2, 0.1)[[0, 2, 3, 4]])
    assert features.accuracy_metrics("x", found[1:2], groups[1:2])["x"] == 0
