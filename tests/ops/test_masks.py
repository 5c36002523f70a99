"""Masks against plain Python rules, one pair of positions at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.ops import masks


def table(rule, batch, query_length, key_length):
    """bool [B 1 T S] of rule(row, position of the query, position of the key, index of the query)."""
    return np.array([
        [[[rule(b, i + key_length - query_length, j, i) for j in range(key_length)] for i in range(query_length)]]
        for b in range(batch)
    ])  # fmt: skip


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([(1, 5), (4, 4), (5, 9)]), st.data())
def test_every_mask_follows_its_rule(lengths, data):
    query_length, key_length = lengths
    numbers = lambda size: np.array(data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size)))  # noqa: E731
    queries, keys = numbers(2 * query_length).reshape(2, -1), numbers(2 * key_length).reshape(2, -1)
    prefixes, valid = numbers(2), numbers(2 * key_length).reshape(2, -1) > 0
    sizes = (1, 2, 3, 3)
    block = np.repeat(np.arange(4), sizes)
    rules = [
        (masks.Full(), lambda b, q, k, i: True),
        (masks.Causal(), lambda b, q, k, i: k <= q),
        (masks.Prefix(2), lambda b, q, k, i: k <= q or k < 2),
        (masks.Prefix(jnp.asarray(prefixes)), lambda b, q, k, i: k <= q or k < prefixes[b]),
        (masks.SlidingWindow(3), lambda b, q, k, i: q - k < 3),
        (masks.BlockCausal(sizes), lambda b, q, k, i: block[k] <= block[q]),
        (masks.Padding(jnp.asarray(valid)), lambda b, q, k, i: valid[b, k]),
        (masks.Segments(jnp.asarray(queries), jnp.asarray(keys)), lambda b, q, k, i: queries[b, i] == keys[b, k]),
    ]
    pair = data.draw(st.tuples(st.sampled_from(rules), st.sampled_from(rules)))
    both = lambda *at: pair[0][1](*at) and pair[1][1](*at)  # noqa: E731
    for mask, rule in [*rules, (pair[0][0] & pair[1][0], both)]:
        wanted = table(rule, 2, query_length, key_length)
        found = np.asarray(mask.dense(query_length, key_length))
        assert found.dtype == bool
        np.testing.assert_array_equal(np.broadcast_to(found, wanted.shape), wanted, err_msg=str(mask))


def test_queries_of_a_causal_mask_are_the_last_positions():
    np.testing.assert_array_equal(masks.Causal().dense(1, 4)[0, 0], [[True] * 4])  # decoding: sees the whole cache
    np.testing.assert_array_equal(masks.Causal().dense(2, 3)[0, 0], [[1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(masks.Causal().dense(3, 2)[0, 0], [[0, 0], [1, 0], [1, 1]])


def test_static_masks_let_every_position_see_itself():
    for mask in (
        masks.Full(),
        masks.Causal(),
        masks.Prefix(1),
        masks.BlockCausal((1, 4)),
        masks.SlidingWindow(1),
        masks.Causal() & masks.Full(),
    ):
        assert mask.static
        assert np.asarray(mask.dense(5, 5)).diagonal(axis1=-2, axis2=-1).all()
    for mask in (masks.Prefix(jnp.ones(1, int)), masks.Causal() & masks.Padding(jnp.ones((1, 5), bool))):
        assert not mask.static


def test_masks_cross_jit_with_their_sizes_static():
    mask = masks.BlockCausal((1, 2)) & masks.Prefix(2) & masks.Padding(jnp.array([[True, False, True]]))
    seen = []
    found = jax.jit(lambda mask: (seen.append(masks.parts(mask)), mask.dense(3, 3))[1])(mask)
    assert seen[0][:2] == (masks.BlockCausal((1, 2)), masks.Prefix(2))
    np.testing.assert_array_equal(found, mask.dense(3, 3))
    assert len(jax.tree.leaves(mask)) == 1
    assert masks.parts(masks.Full() & masks.Full()) == ()


def test_lengths_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match=r"covers 5 positions .* got 6 queries and 6 keys"):
        masks.BlockCausal((1, 4)).dense(6, 6)
    with pytest.raises(ValueError, match=r"S = 4 keys, got \(2, 3\)"):
        masks.Padding(jnp.ones((2, 3), bool)).dense(4, 4)
    with pytest.raises(ValueError, match="2 queries and 3 keys"):
        masks.Segments(jnp.ones((1, 2), int), jnp.ones((1, 4), int)).dense(2, 3)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        masks.SlidingWindow(0)


def test_a_decoders_mask_is_made_of_what_is_given():
    ids, valid = jnp.array([[0, 0, 1, 1, 1]]), jnp.array([[True, True, True, True, False]])
    assert masks.causal() == masks.Causal()
    assert masks.causal(window=2) == masks.Causal() & masks.SlidingWindow(2)
    wanted = table(lambda b, q, k, i: k <= q and q - k < 2 and ids[0, q] == ids[0, k] and valid[0, k], 1, 5, 5)
    np.testing.assert_array_equal(masks.causal(valid, ids, 2).dense(5, 5), wanted)
