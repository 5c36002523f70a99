"""k nearest neighbours against loops."""

import jax
import lookup_toys as toys
import numpy as np
import pytest

from mmjax.evals import knn

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
