"""Neighbours are the same for every block size, and two lists are compared as a plain loop compares them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.ops import neighbours

RNG = np.random.default_rng(0)


def whole(count, width, seed=0):
    """Small whole numbers: products are exact in float32 however they are summed, and many are equal."""
    return np.random.default_rng(seed).integers(-2, 3, (count, width)).astype(np.float32)


def by_sorting(x, k):
    """The k nearest by a stable sort in float64."""
    products = x.astype(np.float64) @ x.T.astype(np.float64)
    np.fill_diagonal(products, -np.inf)
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(products, order, axis=1)


def test_reference_is_a_stable_sort():
    x = whole(40, 5)
    found = neighbours.nearest(x, 7, implementation="reference")
    indices, products = by_sorting(x, 7)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.products, products)
    assert (np.diff(products) == 0).sum() > 40, "the test should hold equal products"


@pytest.mark.parametrize(
    ("rows", "columns", "k"), [(1, 1, 6), (3, 5, 1), (3, 5, 40), (7, 41, 6), (41, 7, 6), (64, 64, 6)]
)
def test_blocks_of_any_size_give_the_same(rows, columns, k):
    x = whole(41, 5)
    found = neighbours.nearest(x, k, implementation="blocked", rows=rows, columns=columns)
    indices, products = by_sorting(x, k)
    np.testing.assert_array_equal(found.indices, indices)
    np.testing.assert_array_equal(found.products, products)


def test_no_row_is_its_own_neighbour_even_among_copies():
    x = np.ones((9, 3), np.float32)
    for form in ("reference", "blocked"):
        found = np.asarray(neighbours.nearest(x, 3, implementation=form, rows=4, columns=2).indices)
        assert not (found == np.arange(9)[:, None]).any()
        np.testing.assert_array_equal(found[5], [0, 1, 2])  # of equals the lower rows
        np.testing.assert_array_equal(found[1], [0, 2, 3])


def test_the_blocked_form_never_holds_all_products():
    x = jax.ShapeDtypeStruct((4096, 16), jnp.float32)
    compiled = neighbours._blocked.lower(x, k=10, rows=128, columns=1024).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4096 * 4096 * 4 / 4


def test_many_rows_choose_the_blocked_form(monkeypatch):
    monkeypatch.setattr(neighbours, "_reference", None)
    found = neighbours.nearest(whole(30, 4), 3, rows=8)
    np.testing.assert_array_equal(found.indices, by_sorting(whole(30, 4), 3)[0])


def test_bfloat16_rounds_products_too():
    x = jnp.asarray(RNG.normal(size=(20, 9)), jnp.bfloat16)
    found = neighbours.nearest(x, 4)
    assert found.products.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float32) @ np.asarray(x, np.float32).T
    near = np.take_along_axis(exact, np.asarray(found.indices), axis=1)
    np.testing.assert_array_equal(found.products, jnp.asarray(near).astype(jnp.bfloat16))


def test_permuting_lists_is_permuting_rows():
    x = RNG.normal(size=(33, 6)).astype(np.float32)
    order = RNG.permutation(33)
    moved = neighbours.nearest(x, 5).permuted(jnp.asarray(order))
    anew = neighbours.nearest(x[order], 5)
    np.testing.assert_array_equal(moved.indices, anew.indices)
    np.testing.assert_allclose(moved.products, anew.products, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "k", "options", "message"),
    [
        (np.zeros((4, 2)), 4, {}, r"more rows than k, and k at least 1, got \[4, 2\] and k=4"),
        (np.zeros((4, 2)), 0, {}, "k at least 1, got"),
        (np.zeros((4, 2, 2)), 1, {}, r"x must be \[N D\]"),
        (np.zeros((4, 2)), 1, {"implementation": "fast"}, "'reference' or 'blocked', got 'fast'"),
        (np.zeros((4, 2)), 1, {"implementation": "blocked", "rows": 0}, "at least one row and one column, got 0 x"),
    ],
)
def test_mistakes_are_said(x, k, options, message):
    with pytest.raises(ValueError, match=message):
        neighbours.nearest(x, k, **options)


def lists(seed, count=12, k=5):
    rng = np.random.default_rng(seed)
    draw = [[rng.permutation(np.delete(np.arange(count), i))[:k] for i in range(count)] for _ in range(2)]
    return [np.array(one, np.int32) for one in draw]


def subsequences(a, b):
    """The longest common subsequence by trying all of a's."""
    return max(
        n
        for n in range(len(a) + 1)
        for chosen in itertools.combinations(a, n)
        if chosen in set(itertools.combinations(b, n))
    )


def levenshtein(a, b):
    """By its recursion."""
    if not a or not b:
        return len(a) + len(b)
    return min(
        levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, levenshtein(a[1:], b[1:]) + (a[0] != b[0])
    )  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_two_lists_are_compared_as_by_hand(seed):
    a, b = lists(seed)
    rows = range(len(a))
    np.testing.assert_allclose(neighbours.overlap(a, b), [len(set(a[i]) & set(b[i])) / 5 for i in rows])
    np.testing.assert_array_equal(neighbours.returns(a, b), [any(i in a[j] for j in b[i]) for i in rows])
    np.testing.assert_array_equal(neighbours.common_order(a, b), [subsequences(a[i], b[i]) for i in rows])
    np.testing.assert_array_equal(neighbours.edits(a, b), [levenshtein(tuple(a[i]), tuple(b[i])) for i in rows])


def test_equal_lists_agree_wholly_and_disjoint_ones_not_at_all():
    a = lists(0)[0]
    for function, same, apart in (
        (neighbours.overlap, 1, 0),
        (neighbours.common_order, 5, 0),
        (neighbours.edits, 0, 5),
    ):
        np.testing.assert_array_equal(function(a, a), same)
        np.testing.assert_array_equal(function(a, a + 100), apart)


def test_comparing_in_pieces_changes_nothing(monkeypatch):
    a, b = lists(3)
    functions = (neighbours.overlap, neighbours.returns, neighbours.edits)
    at_once = [np.asarray(function(a, b)) for function in functions]
    monkeypatch.setattr(neighbours, "CELLS", 5 * 5 * 5)  # 5 rows at a time, of 12
    pieces = [np.asarray(jax.jit(function.__wrapped__)(a, b)) for function in functions]
    np.testing.assert_array_equal(at_once, pieces)


@pytest.mark.parametrize("k", [2, 5, 13])
def test_local_hsic_is_that_of_masked_kernels(k):
    x, y = (RNG.normal(size=(14, d)).astype(np.float32) for d in (4, 6))
    a, b = (neighbours.nearest(z, k) for z in (x, y))
    masks = []
    for one in (a, b):
        mask = np.zeros((14, 14))
        np.put_along_axis(mask, np.asarray(one.indices), 1, axis=1)
        masks.append(mask)
    K, L = ((z.astype(float) @ z.T.astype(float)) * masks[0] * masks[1] for z in (x, y))
    n = 14
    wanted = (K * L.T).sum() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 * (K @ L).sum() / (n - 2)
    np.testing.assert_allclose(neighbours.local_hsic(a, b), wanted / (n * (n - 3)), rtol=2e-5, atol=1e-7)
