"""Distances of sets against prdc, scikit-image, scipy and torchmetrics (stored numbers), and against closed forms."""

from pathlib import Path

import numpy as np
import pytest

from mmjax.evals import generation

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "generation.npz")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


# --- Frechet distance


def test_frechet_is_scipys_of_full_covariances_and_of_fewer_rows_than_features():
    pairs = ("real", "made"), ("few", "many")
    found = [generation.frechet_of(*(GOLDEN[name] for name in pair)) for pair in pairs]
    np.testing.assert_allclose(found, GOLDEN["frechet"], rtol=1e-6)  # sqrtm of a singular product has fewer digits


def test_frechet_of_a_set_with_itself_is_zero_and_turns_do_not_matter_but_scales_do():
    x, y = normal(0, 60, 5), 2 * normal(1, 50, 5) + 1
    assert generation.frechet_of(x, x) < 1e-8
    turn = np.linalg.qr(normal(2, 5, 5))[0]
    there = generation.frechet_of(x, y)
    assert generation.frechet_of(x @ turn, y @ turn) == pytest.approx(there, rel=1e-10)
    assert generation.frechet_of(3 * x, 3 * y) == pytest.approx(9 * there, rel=1e-10)
    assert generation.frechet_of(y, x) == pytest.approx(there, rel=1e-10)


def test_frechet_of_two_numbers_is_the_distance_of_means_and_deviations():
    x, y = normal(0, 30, 1), 3 * normal(1, 40, 1) + 2
    wanted = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert generation.frechet_of(x, y) == pytest.approx(wanted, rel=1e-12)


def test_frechet_of_diagonal_covariances_adds_up():
    a, b = (generation.Moments(np.full(3, m), np.diag(np.array(v) ** 2.0)) for m, v in ((0, [1, 2, 3]), (1, [4, 2, 0])))
    assert generation.frechet(a, b) == pytest.approx(3 + 9 + 0 + 9)


# --- kernel


def test_kernel_is_torchmetrics():
    x = GOLDEN["real"].astype(np.float64)
    assert generation.kernel_once(x, 1.1 * x[::-1]) == pytest.approx(GOLDEN["kernel"][0], rel=1e-9)
    same = GOLDEN["real"][:47].astype(np.float64), GOLDEN["made"].astype(np.float64)
    assert generation.kernel_once(*same) == pytest.approx(GOLDEN["kernel"][1], rel=1e-9)


def test_kernel_has_no_bias_and_does_not_ask_which_is_which():
    x = normal(0, 400, 4)
    found = []
    for seed in range(200):
        order = np.random.default_rng(seed).permutation(400)
        found.append(generation.kernel_once(x[order[:60]], x[order[60:120]]))
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(200)
    assert min(found) < 0 < max(found)
    assert generation.kernel_once(x[:50], x[50:90]) == pytest.approx(generation.kernel_once(x[50:90], x[:50]))


def test_subsets_come_to_what_whole_sets_give():
    x, y = normal(0, 300, 3), normal(1, 300, 3) + 0.5
    found = generation.kernel(x, y, np.random.default_rng(0), subsets=200, size=100)
    assert abs(found.mean - generation.kernel_once(x, y)) < 4 * found.deviation / np.sqrt(200)
    whole = generation.kernel(x, y, np.random.default_rng(0), subsets=2)
    assert whole.mean == pytest.approx(generation.kernel_once(x, y))
    assert whole.deviation == pytest.approx(0, abs=1e-9)


# --- neighbours


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("rows", [7, 512])
def test_neighbours_are_prdcs_whatever_is_compared_at_once(k, rows, monkeypatch):
    monkeypatch.setattr(generation, "ROWS", rows)
    found = generation.neighbours(GOLDEN["real"], GOLDEN["made"], k)
    np.testing.assert_allclose(found, GOLDEN[f"prdc_{k}"], rtol=1e-12)


def test_neighbours_of_six_points_on_a_line():
    real, made = np.array([0.0, 1, 2, 10, 11, 12])[:, None], np.array([0.9, 1.1, 1.2, 30, 31, 32])[:, None]
    # k = 1: real balls reach 1 to each side. 0.9 lies in those of 0 and 1, 1.1 and 1.2 in those of 1 and 2.
    # Made balls: 0.9 +- 0.2, 1.1 +- 0.1, 1.2 +- 0.1, and 30, 31, 32 +- 1. Of the real, only 1 is in one.
    found = generation.neighbours(real, made, k=1)
    assert found == pytest.approx((3 / 6, 1 / 6, 6 / 6, 3 / 6))


def test_the_same_sets_and_sets_far_apart():
    x = normal(0, 40, 3)
    assert generation.neighbours(x, x)[:2] == (1, 1)
    assert generation.neighbours(x, x).coverage == 1
    assert generation.neighbours(x, x + 100) == (0, 0, 0, 0)
    assert generation.neighbours(x, np.repeat(x[:1], 40, 0)).recall == 0
    heap = np.repeat(100 * normal(1, 31, 67), 7, 0)[np.random.default_rng(0).permutation(217)]
    assert generation.radii(heap, 5).max() == 0  # and not what rounding leaves
    assert generation.neighbours(heap, heap) == (0, 0, 0, 0)


# --- copies


def drawings(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)


def test_the_nearest_training_picture_is_that_of_a_loop(monkeypatch):
    monkeypatch.setattr(generation, "ROWS", 3)
    train, images = drawings(0, 20), drawings(1, 7)
    images[2] = train[5]
    found = generation.nearest(images, train)
    every = [[np.sqrt(np.mean((a / 255.0 - b / 255.0) ** 2)) for b in train] for a in images]
    np.testing.assert_array_equal(found.row, np.argmin(every, 1))
    np.testing.assert_allclose(found.distance, np.min(every, 1), rtol=1e-12)
    assert found.distance[2] == 0
    assert found.row[2] == 5


def test_a_picture_is_not_its_own_neighbour_and_mirrors_are_seen():
    train = drawings(0, 20)
    rows = np.array([3, 4, 19])
    assert generation.nearest(train[rows], train, own=rows).distance.min() > 0.3
    mirrored = generation.nearest_or_mirrored(train[rows][:, :, ::-1], train)
    np.testing.assert_array_equal(mirrored.row, rows)
    np.testing.assert_array_equal(mirrored.distance, 0)


# --- deviations, errors


def test_deviations_are_those_of_the_mean_and_fall_with_the_root_of_the_count():
    few, many = (
        generation.deviation(np.mean, [normal(0, count)], np.random.default_rng(1), times=400) for count in (100, 1600)
    )
    assert few == pytest.approx(normal(0, 100).std() / 10, rel=0.15)
    assert few / many == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generation.moments(np.zeros((1, 3))), r"features must be \[N D\] of at least 2 rows, got \[1, 3\]"),
        (lambda: generation.moments(np.full((3, 3), np.nan)), "features hold NaN"),
        (lambda: generation.frechet_of(np.zeros((3, 2)), np.zeros((3, 4))), "one width, got 2 and 4"),
        (lambda: generation.neighbours(np.zeros((9, 2)), np.zeros((5, 2))), "more than 5 rows in each set, got 9 and"),
    ],
)
def test_errors_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
