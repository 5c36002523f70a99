"""The map shows the plane in which the embeddings differ most."""

import jax
import lookup_toys as toys
import numpy as np
import pytest

from mmjax.evals import embedding_map

RNG = np.random.default_rng(0)


def test_points_in_a_plane_are_found_again():
    plane, _ = np.linalg.qr(RNG.normal(size=(6, 2)))
    points = RNG.normal(size=(40, 2)) * [5, 2]
    points -= points.mean(axis=0)
    found, share = embedding_map.principal(points @ plane.T + 7)
    assert share == pytest.approx(1)
    np.testing.assert_allclose(found @ found.T, points @ points.T, atol=1e-9)  # equal up to a rotation
    assert found[:, 0].std() > found[:, 1].std()


def test_the_share_is_that_of_the_covariances_largest_values():
    x = RNG.normal(size=(50, 5)) * [4, 3, 2, 1, 1]
    values = np.sort(np.linalg.eigvalsh(np.cov(x.T)))
    assert embedding_map.principal(x)[1] == pytest.approx(values[-2:].sum() / values.sum())


def test_the_heavier_tail_points_right_and_up_however_the_axes_come():
    x = RNG.exponential(size=(30, 4)) * [4, 3, 1, 1]
    for mirrored in (x, -x, x * [1, -1, 1, 1]):
        assert ((embedding_map.principal(mirrored)[0] ** 3).sum(axis=0) > 0).all()


def test_eval_gives_a_picture_and_the_share():
    data = toys.Data(("a",), {"test": toys.Split((0, 1, 2, 3), (0,) * 4, (0, 1, 1, 0))}, ("animal-cat", "animal-dog"))
    result = embedding_map.EmbeddingMap("test")(
        toys.Lookup(), toys.variables(RNG.normal(size=(4, 3)), np.eye(3)), data, jax.random.key(0)
    )
    assert 0 < result.metrics["test/map_variance"] <= 1
    assert result.pictures["test map"].dtype == np.uint8
