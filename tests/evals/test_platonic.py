"""Alignment metrics: the official code's numbers, and what must hold for any features."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.evals import platonic, platonic_official

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "platonic.npz")
CASES = ("waves", "narrow", "wide")
RNG = np.random.default_rng(0)
METRICS = platonic.metrics(k=3, dim=5)  # as some of the golden ones, so that little is compiled
NAMES = [metric.name for metric in METRICS]


def sides(case):
    return [platonic.unit(jnp.asarray(GOLDEN[f"{case}/{side}"])) for side in "ab"]


def features(rows=64, widths=(7, 12), seed=0, noise=0.5):
    """Two views of one latent."""
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(rows, 5))
    views = [latent @ rng.normal(size=(5, width)) + noise * rng.normal(size=(rows, width)) for width in widths]
    return [platonic.unit(jnp.asarray(view, jnp.float32)) for view in views]


# The official code's numbers: 1e-5, float32 there and here, where no neighbours are as near as rounding


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("k", [3, 10])
def test_neighbours_share_what_the_original_says(case, k):
    x, y = sides(case)
    for name, scale in (("mutual_knn", 1), ("cycle_knn", 1), ("lcs_knn", k), ("edit_distance_knn", 1)):
        found = getattr(platonic, name)(x, y, k) * scale
        np.testing.assert_allclose(found, GOLDEN[f"{case}/{name}/{k}"], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(platonic.cycle_knn(y, x), GOLDEN[f"{case}/cycle_knn/10/reversed"], rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("sigma", "tail"), [(None, ""), (1.0, "/rbf"), (0.5, "/rbf/0.5")])
def test_cka_is_the_originals_but_for_its_epsilon(case, sigma, tail):
    x, y = sides(case)
    for name, unbiased in (("cka", False), ("unbiased_cka", True)):
        wanted = GOLDEN[f"{case}/{name}{tail}"]
        parts = platonic.cka_parts(x, y, sigma, unbiased)
        # The original's float32 sums of Gaussians, which are not centred, are wrong by up to 6e-6 of these.
        np.testing.assert_allclose(parts.ratio(platonic_official.EPSILON), wanted, rtol=1e-5, atol=1e-5)
        clean = float(platonic.cka(x, y, sigma=sigma, unbiased=unbiased))
        assert clean == float(parts.ratio()) >= float(parts.ratio(platonic_official.EPSILON))


def test_cka_of_the_waves_to_seven_digits():
    """Computed in float64 beside the original."""
    x, y = sides("waves")
    for sigma, biased, unbiased in ((None, 0.365362465463, 0.125648553052), (1.0, 0.574118402487, 0.129338168669)):
        for flag, wanted in ((False, biased), (True, unbiased)):
            found = platonic.cka_parts(x, y, sigma, flag).ratio(platonic_official.EPSILON)
            np.testing.assert_allclose(found, wanted, atol=3e-7)


@pytest.mark.parametrize("case", CASES)
def test_the_official_mode_gives_the_originals_numbers(case):
    x, y = sides(case)
    found = {metric.name.split("@")[0]: float(metric(x, y)) for metric in platonic_official.metrics(k=10, dim=5)}
    tails = {"cka": "cka", "unbiased_cka": "unbiased_cka", "rbf_cka": "cka/rbf", "svcca": "svcca/exact"}
    wanted = {name: float(GOLDEN[f"{case}/{tails.get(name, name + '/10')}"]) for name in found}
    assert len(wanted) == 9
    for name in wanted:
        assert found[name] == pytest.approx(wanted[name], rel=1e-5, abs=1e-6), name
    all_pairs = platonic_official.metrics(k=len(x) - 1)[4]
    assert all_pairs.name.startswith("cknna")
    assert float(all_pairs(x, y)) == pytest.approx(float(GOLDEN[f"{case}/cknna/all"]), rel=1e-5, abs=1e-6)


def test_svcca_lies_where_the_originals_random_vectors_scatter():
    for case in CASES:
        scattered, found = GOLDEN[f"{case}/svcca"], float(platonic.svcca(*sides(case), dim=5))
        assert scattered.min() - 0.03 <= found <= scattered.max() + 0.03
        np.testing.assert_allclose(found, GOLDEN[f"{case}/svcca/exact"], atol=1e-5)


# Preparing


@pytest.mark.parametrize(("way", "exact"), [("exact", True), ("approximate", False)])
def test_outliers_are_cut_where_the_original_cuts_them(way, exact):
    x = GOLDEN["layers/x"]
    cut = platonic.clamp(x, 0.95) if exact else platonic_official.clamp_by_rows(x, 0.95)
    np.testing.assert_allclose(cut, GOLDEN[f"layers/{way}/x"], rtol=1e-6)
    assert np.abs(cut).max() < np.abs(x).max()
    layers = platonic_official.prepare(x, exact=exact)
    wanted = GOLDEN[f"layers/{way}/x"]
    np.testing.assert_allclose(jnp.stack(layers, 1), wanted / np.linalg.norm(wanted, axis=-1, keepdims=True), atol=1e-6)
    (first,) = platonic_official.prepare([GOLDEN["layers/y/0"]], exact=exact)
    np.testing.assert_allclose(first, platonic.unit(GOLDEN[f"layers/{way}/y/0"]), atol=1e-6)


def test_a_tensor_has_one_bound_and_a_list_one_for_each_layer():
    x = RNG.normal(size=(20, 2, 5)).astype(np.float32) * np.array([1, 100], np.float32)[:, None]
    together, apart = platonic.prepare(x, 0.8), platonic.prepare(list(np.moveaxis(x, 1, 0)), 0.8)
    np.testing.assert_allclose(together[0], platonic.unit(x[:, 0]), rtol=1e-6)  # no small value reaches the bound
    assert np.abs(np.asarray(apart[0]) - np.asarray(together[0])).max() > 0.01


def test_a_share_of_one_cuts_nothing_and_rows_get_length_one():
    x = RNG.normal(size=(6, 3)).astype(np.float32)
    x[2] = 0
    (layer,) = platonic.prepare(x, 1.0)
    np.testing.assert_allclose(np.linalg.norm(layer, axis=1), [1, 1, 0, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(layer[0], x[0] / np.linalg.norm(x[0]), rtol=1e-6)


# The search over layers


@pytest.mark.parametrize(("way", "exact"), [("exact", True), ("approximate", False)])
def test_the_best_pair_of_layers_is_the_originals(way, exact):
    x = platonic_official.prepare(GOLDEN["layers/x"], exact=exact)
    y = platonic_official.prepare([GOLDEN["layers/y/0"], GOLDEN["layers/y/1"]], exact=exact)
    compared = 0
    for metric in platonic_official.metrics(10):
        name = metric.name.split("@")[0]
        if f"layers/{way}/{name}" in GOLDEN:
            found = platonic_official.best(platonic.layer_scores(metric, x, y))
            assert found.score == pytest.approx(float(GOLDEN[f"layers/{way}/{name}"]), rel=1e-5, abs=1e-6), name
            assert found.pair == tuple(GOLDEN[f"layers/{way}/{name}/pair"]), name
            compared += 1
    assert compared == 7


def test_official_search_begins_at_zero_ours_does_not():
    x, y = (platonic.prepare(GOLDEN[f"apart/{side}"], 1.0) for side in "xy")
    scores = platonic.layer_scores(platonic_official.metrics(3)[5], x, y)
    assert scores.max() < 0
    assert platonic_official.best(scores) == (0.0, None)
    assert float(GOLDEN["apart/score"]) == 0
    assert platonic.best(scores) == (pytest.approx(scores.max()), (0, 0))


def test_of_equal_pairs_the_first_is_taken():
    assert platonic.best(np.array([[0.1, 0.3], [0.3, 0.3]])) == (0.3, (0, 1))


def test_half_precision_rounds_as_the_original_and_scores_about_the_same():
    y = platonic_official.half([GOLDEN["layers/y/0"], GOLDEN["layers/y/1"]])
    assert y[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(y[0].astype(jnp.float32), GOLDEN["layers/bfloat16/rows"], rtol=2**-7)
    x = platonic_official.half(GOLDEN["layers/x"])
    found = platonic_official.best(platonic.layer_scores(platonic_official.metrics(10)[0], x, y))
    # Equal inner products are in no order there: a few of 480 neighbours differ.
    assert found.score == pytest.approx(float(GOLDEN["layers/bfloat16/mutual_knn"]), abs=0.02)


def test_scores_of_layers_are_those_of_pairs():
    x, y = features(), features(widths=(7, 12, 7), seed=1)
    for metric in METRICS:
        found = platonic.layer_scores(metric, x, y)
        assert found.shape == (2, 3)
        np.testing.assert_allclose(found, [[metric(a, b) for b in y] for a in x], rtol=1e-5, atol=1e-6)


# What must hold


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_a_side_and_itself_score_most(metric):
    x, y = features()
    if metric.name.startswith("cycle"):  # a row that none of its neighbours has as a neighbour is not come back to
        lists = np.asarray(metric.view(x).indices)
        wanted = np.mean([any(i in lists[j] for j in lists[i]) for i in range(len(x))])
        assert wanted < 1
    else:
        wanted = 1
    assert float(metric(x, x)) == pytest.approx(wanted, abs=1e-5)
    assert float(metric(x, y)) < wanted


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_rows_may_be_permuted_together_and_features_rotated_mirrored_and_scaled(metric):
    x, y = features()
    score = float(metric(x, y))
    order = RNG.permutation(len(x))
    assert float(metric(x[order], y[order])) == pytest.approx(score, abs=2e-5)
    # SVCCA gives each column deviation 1 first, and columns are what a rotation mixes.
    turn = np.linalg.qr(RNG.normal(size=(12, 12)))[0] if metric.view != platonic.Principal(5) else np.eye(12)[::-1]
    turned = platonic.prepare(7.5 * np.asarray(y) @ turn, 1.0)[0]
    assert float(metric(x, turned)) == pytest.approx(score, abs=2e-5)
    assert abs(float(metric(x, y[order])) - score) > 0.01


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_which_side_is_which_matters_to_cycles_and_a_little_to_cknna(metric):
    x, y = features(seed=3, noise=1.0)
    difference = abs(float(metric(x, y)) - float(metric(y, x)))
    low, high = {"cycle_knn": (0.01, 1), "cknna": (1e-5, 0.03)}.get(metric.name.split("@")[0], (0, 1e-5))
    assert low <= difference <= high


def test_metrics_as_values_and_as_functions_agree():
    x, y = features()
    functions = {
        "mutual_knn": lambda: platonic.mutual_knn(x, y, 3), "cycle_knn": lambda: platonic.cycle_knn(x, y, 3),
        "lcs_knn": lambda: platonic.lcs_knn(x, y, 3), "edit_distance_knn": lambda: platonic.edit_distance_knn(x, y, 3),
        "cknna": lambda: platonic.cknna(x, y, 3), "unbiased_cka": lambda: platonic.cka(x, y, unbiased=True),
        "cka": lambda: platonic.cka(x, y), "rbf_cka": lambda: platonic.cka(x, y, sigma=1.0),
        "svcca": lambda: platonic.svcca(x, y, 5),
    }  # fmt: skip
    assert [name.split("@")[0] for name in NAMES] == list(functions)
    for metric, function in zip(METRICS, functions.values(), strict=True):
        assert float(metric(x, y)) == pytest.approx(float(function()), abs=1e-6), metric.name


def test_cka_of_wide_features_is_that_of_narrow_ones():
    """More columns than rows: kernels instead of products of columns."""
    x, y = features(rows=12, widths=(40, 5))
    K, L = ((z.astype(np.float64) @ z.T.astype(np.float64)) for z in (np.asarray(x), np.asarray(y)))
    H = np.eye(12) - 1 / 12
    K, L = H @ K @ H, H @ L @ H
    wanted = (K * L).sum() / np.sqrt((K * K).sum() * (L * L).sum())
    assert float(platonic.cka(x, y)) == pytest.approx(wanted, abs=1e-6)


def test_cknna_of_all_neighbours_is_unbiased_cka():
    x, y = features()
    assert float(platonic.cknna(x, y, 63)) == pytest.approx(float(platonic.cka(x, y, unbiased=True)), abs=1e-6)


def test_copies_of_a_row_are_neighbours_in_the_order_of_rows():
    """Documented: of equal inner products the lower row comes first, so with copies the order of rows matters."""
    x, y = features()
    x = jnp.repeat(x[:4], 16, axis=0)
    assert float(platonic.mutual_knn(x, x, 3)) == 1
    orders = [np.random.default_rng(seed).permutation(64) for seed in range(5)]
    assert len({float(platonic.mutual_knn(x[order], y[order], 3)) for order in orders}) > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: platonic.mutual_knn(np.ones((4, 2)), np.ones((5, 2)), 2), r"same N, got \[4, 2\] and \[5, 2\]"),
        (lambda: platonic.cka(np.ones((4, 2, 1)), np.ones((4, 2))), r"x and y must be \[N D\]"),
        (lambda: platonic.mutual_knn(np.ones((4, 2)), np.ones((4, 2)), 4), "more rows than k"),
        (lambda: platonic.cknna(np.ones((9, 2)), np.ones((9, 2)), 1), "CKNNA needs k of at least 2, got 1"),
        (lambda: platonic.cka(np.ones((3, 2)), np.ones((3, 2))), "at least 4 rows are needed, got 3"),
        (lambda: platonic.cknna(np.eye(3), np.eye(3), 2), "at least 4 rows are needed, got 3"),
        (lambda: platonic.svcca(np.ones((9, 2)), np.ones((9, 5)), 3), r"lesser of N - 1 and D, got 3 for \[9, 2\]"),
        (lambda: platonic.prepare(np.ones((3, 2, 2, 2))), r"features must be \[N D\], \[N L D\] or a list"),
        (lambda: platonic.prepare([np.ones((3, 2)), np.ones((4, 2))]), r"of one N, got \[\[4, 2\]\]"),
        (lambda: platonic.prepare([]), "got an empty list"),
        (lambda: platonic.prepare(np.array([[1.0, np.nan], [1, 2]])), "layer 0 of the features has 1 rows with"),
        (lambda: platonic.prepare(np.ones((3, 2)), 0), "above 0 and at most 1, got 0"),
    ],
)  # fmt: skip
def test_mistakes_are_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_metric_compiles_once():
    x, y = features()
    METRICS[0](x, y)
    compiled = platonic._compare._cache_size()
    dataclasses.replace(platonic.metrics(3, 5)[0])(x, y)
    assert platonic._compare._cache_size() == compiled


def test_a_side_of_many_rows_needs_no_square_matrix():
    x = jax.ShapeDtypeStruct((9000, 8), jnp.float32)
    compiled = platonic._view.lower(platonic.Nearest(10), x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 9000 * 9000 * 4 / 3
