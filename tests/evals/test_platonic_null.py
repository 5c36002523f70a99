"""A null is what chance gives: permuting views is permuting rows, p-values are uniform, and the search is paid for."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.evals import platonic, platonic_null

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "platonic.npz")
METRICS = platonic.metrics(k=4, dim=3)
NAMES = [metric.name for metric in METRICS]
CHEAP = (METRICS[0], METRICS[5])  # mutual_knn and unbiased_cka


def independent(seed, rows=40, widths=(7, 12)):
    keys = jax.random.split(jax.random.key(seed), len(widths))
    return [platonic.unit(jax.random.normal(key, (rows, width))) for key, width in zip(keys, widths, strict=True)]


def related(seed, rows=40, noise=0.5, widths=(7, 12)):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(rows, 5))
    views = [latent @ rng.normal(size=(5, width)) + noise * rng.normal(size=(rows, width)) for width in widths]
    return [platonic.unit(jnp.asarray(view, jnp.float32)) for view in views]


def some_orders(rows=40, count=39, seed=0):  # one shape for most tests: each compiles anew
    return platonic_null.orders(jax.random.key(seed), rows, count)


def test_orders_hold_every_row_once_and_differ():
    found = np.asarray(some_orders())
    np.testing.assert_array_equal(np.sort(found, axis=1), np.tile(np.arange(40), (39, 1)))
    assert len(np.unique(found, axis=0)) == 39
    assert np.ptp(found.mean(axis=0)) < 12  # no place prefers some rows: means of 39 numbers around 19.5


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_permuting_a_view_is_permuting_rows(metric):
    x, y = related(0)
    orders = some_orders()
    a, b = (platonic.views(metric.view, [side]) for side in (x, y))
    found = platonic_null.null_scores(metric.compare, a, b, orders)
    np.testing.assert_allclose(found[:4], [metric(x, y[order]) for order in orders[:4]], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["mutual_knn", "unbiased_cka"])
def test_calibration_is_that_of_calibrated_similarity(name):
    metric = platonic.Metric(name, platonic.Nearest(5), platonic.shared) if name == "mutual_knn" else METRICS[5]
    a, b, c, d = (platonic.unit(jnp.asarray(GOLDEN[f"null/{side}"])) for side in "abcd")
    orders = jnp.asarray(GOLDEN["null/orders"], jnp.int32)
    for alpha in (0.05, 0.1):
        (found,) = platonic_null.measure([metric], [a], [b], orders, alpha=alpha)
        wanted = GOLDEN[f"null/{name}/{alpha}"]
        np.testing.assert_allclose((found.calibrated, found.p, found.threshold), wanted, rtol=1e-5, atol=2e-6)
    for how, aggregate in (("max", jnp.max), ("mean", jnp.mean)):
        (found,) = platonic_null.measure([metric], [a, c], [b, d], orders, aggregate=aggregate)
        wanted = GOLDEN[f"null/{name}/{how}"]
        np.testing.assert_allclose((found.calibrated, found.p, found.threshold), wanted, rtol=1e-5, atol=2e-6)


def test_p_counts_what_was_observed_among_the_null():
    null = np.array([0.1, 0.2, 0.2, 0.4])
    assert platonic_null.p_value(0.5, null) == 1 / 5
    assert platonic_null.p_value(0.2, null) == 4 / 5
    assert platonic_null.p_value(0.0, null) == 1
    assert platonic_null.p_value(np.nan, null) == 1
    assert platonic_null.p_value(0.5, np.append(null, np.nan)) == 2 / 6


@pytest.mark.parametrize("swapped", [False, True])
def test_a_layer_whose_rows_are_alike_is_named(swapped):
    sides = independent(0)
    sides[swapped] = platonic.unit(jnp.ones_like(sides[swapped]))
    wanted = f"cka is not a number for layer 0 of x and layer 0 of y: all rows are alike in layer 0 of {'xy'[swapped]};"
    with pytest.raises(ValueError, match=wanted):
        platonic_null.measure(METRICS[6:7], *([side] for side in sides), some_orders())


def test_the_threshold_is_an_order_statistic():
    null = np.arange(200) / 200
    assert platonic_null.threshold(1.0, null, 0.05) == pytest.approx(null[190])  # 191st of 201
    assert platonic_null.threshold(-1.0, null, 0.05) == pytest.approx(null[189])
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, got 1"):
        platonic_null.threshold(0.0, null, 1)


def p_values(metrics, repeats, layers=1):
    """[repeats, metrics] p of sides that are independent."""
    found = []
    for seed in range(repeats):
        sides = independent(seed, widths=(7,) * layers + (12,) * layers)
        orders = some_orders(seed=seed)
        rows = platonic_null.measure(metrics, sides[:layers], sides[layers:], orders)
        found.append([row.p for row in rows])
    return np.array(found)


def test_independent_sides_have_uniform_p_values():
    found = p_values(CHEAP, 150)
    for column in found.T:
        # Kolmogorov's distance; 1.36 / sqrt(150) = 0.11 is exceeded once in 20. p of mutual_knn, which has ties, errs
        # on the side of large.
        above = np.mean(column[:, None] > np.arange(1, 40) / 40, axis=0) - (1 - np.arange(1, 40) / 40)
        assert above.min() > -0.11
        assert above.max() < 0.2
        assert np.mean(column <= 0.05) < 0.11  # 0.05 + 3.4 deviations


def test_the_null_of_the_maximum_pays_for_the_search():
    """Three by three layers of noise: the best pair passes the null of one pair too often, and its own as it should."""
    metric, naive, fair = METRICS[5], [], []
    for seed in range(60):
        sides = independent(seed, widths=(7, 7, 7, 12, 12, 12))
        orders = some_orders(seed=seed)
        (best,) = platonic_null.measure([metric], sides[:3], sides[3:], orders)
        i, j = best.pair
        (alone,) = platonic_null.measure([metric], [sides[i]], [sides[3 + j]], orders)
        assert alone.score == pytest.approx(best.score, abs=1e-6)
        naive.append(alone.p <= 0.05)
        fair.append(best.p <= 0.05)
        assert best.null.mean() > alone.null.mean()
    assert np.mean(naive) > 0.2
    assert np.mean(fair) < 0.15


def test_related_sides_are_found_and_scores_are_above_the_threshold():
    rows = platonic_null.measure(METRICS, [related(0)[0]], [related(0)[1]], some_orders())
    assert [row.metric.name for row in rows] == NAMES
    for row in rows:
        assert row.p == 1 / 40, row.metric.name
        assert row.pair == (0, 0)
        assert row.score == pytest.approx(row.last)
        assert row.null.shape == (39,)
        assert 0 < row.calibrated < row.score <= 1 or row.metric.name == "svcca@3"


def test_mutual_neighbours_of_independent_sides_are_shared_at_chance():
    row = platonic_null.measure(METRICS[:1], *([side] for side in independent(0)), some_orders())[0]
    assert row.null.mean() == pytest.approx(4 / 39, abs=0.015)  # four deviations of the mean


def test_biased_cka_of_wide_noise_is_high_and_its_null_says_so():
    x, y = independent(0, 40, (400, 300))
    biased, unbiased = (platonic_null.measure([METRICS[i]], [x], [y], some_orders())[0] for i in (6, 5))
    assert biased.score > 0.8
    assert biased.calibrated < 0.05
    assert abs(unbiased.score) < 0.1


def test_expected_cka_is_the_mean_over_orders():
    x, y = related(1)
    (row,) = platonic_null.measure([METRICS[6]], [x], [y], some_orders())
    assert float(platonic_null.expected_cka(x, y)) == pytest.approx(row.null.mean(), abs=float(row.null.std()) * 0.6)
    wide = independent(0, 128, (256, 256))
    assert float(platonic_null.expected_cka(*wide)) == pytest.approx(256 / (256 + 128), abs=0.02)


def test_orders_that_move_rows_together_keep_their_ties():
    """Two copies of each row: free orders part them, and call the copies alignment; orders of pairs do not."""
    x, y = (jnp.repeat(side, 2, axis=0) + 1e-3 * side.mean() for side in independent(5, 20))
    x, y = (z + 0.01 * jax.random.normal(jax.random.key(i), z.shape) for i, z in enumerate((x, y)))
    free = some_orders()
    together = (2 * some_orders(20)[:, :, None] + jnp.arange(2)).reshape(39, 40)
    by_chance, fairly = (platonic_null.measure(METRICS[:1], [x], [y], orders)[0].p for orders in (free, together))
    assert by_chance == 1 / 40
    assert fairly > 0.05


def test_an_interval_is_as_wide_as_scores_of_other_rows_scatter():
    """40 samples of 60 rows; for CKA within a third, for neighbours wider but not by more than 2.2."""
    for metric, low, high in ((METRICS[5], 0.7, 1.4), (METRICS[0], 0.9, 2.2)):
        samples = [related_rows(seed) for seed in range(40)]
        scatter = np.std([float(metric(*pair)) for pair in samples])
        widths, held, centre = [], 0, np.mean([float(metric(*pair)) for pair in samples])
        for seed, pair in enumerate(samples[:12]):
            bottom, top = platonic_null.interval(metric, *pair, jax.random.key(seed), draws=60)
            assert bottom < float(metric(*pair)) < top <= 1
            widths.append(top - bottom)
            held += bottom <= centre <= top
        assert low < np.mean(widths) / (2 * 1.96 * scatter) < high, metric.name
        assert held >= 10


def related_rows(seed, rows=60):
    """Rows drawn from one population."""
    maps = np.random.default_rng(99)
    to_x, to_y = maps.normal(size=(5, 7)), maps.normal(size=(5, 12))
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(rows, 5))
    views = [latent @ one + 1.5 * rng.normal(size=(rows, one.shape[1])) for one in (to_x, to_y)]
    return [platonic.unit(jnp.asarray(view, jnp.float32)) for view in views]


def test_warnings_speak_where_rows_are_few():
    few = independent(0, 40, (400, 300))
    said = platonic_null.warnings([few[0]], [few[1]], k=4)
    assert len(said) == 2
    assert said[0].startswith("40 rows are few for widths 400 and 300: between the last layers cka is 0.9")
    assert said[1].startswith("k = 4 is 10% of 40 rows")
    enough = independent(0, 300)
    assert platonic_null.warnings([enough[0]], [enough[1]], k=4) == []
    (search,) = platonic_null.warnings(enough[:1], [enough[1], enough[1]], k=4)
    assert search.startswith("scores are the best of 2 pairs of layers")


def test_mistakes_are_said(monkeypatch):
    x, y = independent(0)
    with pytest.raises(ValueError, match=r"of the same rows, got \[40\] and \[39, 25\]"):
        platonic_null.measure(METRICS, [x], [y], some_orders(25))
    with pytest.raises(ValueError, match="same rows, got"):
        platonic_null.measure(METRICS, [x], [y[:20]], some_orders())
    with pytest.raises(ValueError, match="draws must be at least 2 and level between 0 and 1, got 1 and"):
        platonic_null.interval(METRICS[0], x, y, jax.random.key(0), draws=1)
    monkeypatch.setattr(platonic_null, "LARGEST_KERNEL", 20)
    with pytest.raises(ValueError, match="unbiased_cka needs all 40 x 40 similarities for its null; at most 20 rows"):
        platonic_null.measure(METRICS[5:6], [x], [y], some_orders())
