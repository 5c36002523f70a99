"""Packed rows: nothing lost, hardly any padding, and the loss and gradients of the documents alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.data import packing
from mmjax.models import llama
from mmjax.objectives import pretrain

DOCUMENTS = [list(range(1, 1 + n)) for n in (3, 21, 7, 1, 12, 5, 9)]  # one is longer than a row of 16


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 16))
def test_every_token_lies_in_one_row_and_no_row_overflows(sizes, length):
    pieces = packing.cut(sizes, length)
    covered = [token for start, stop in pieces for token in range(start, stop)]
    assert sorted(covered) == list(range(sum(sizes)))
    widths = [int(stop - start) for start, stop in pieces]
    rows = packing.best_fit(widths, length)
    assert sorted(piece for row in rows for piece in row) == list(range(len(pieces)))
    assert all(0 < sum(widths[piece] for piece in row) <= length for row in rows)
    starts = [start for start, _ in pieces]  # no piece reaches across two documents
    ends = set(np.cumsum(sizes).tolist())
    assert all(not any(start < end < stop for end in ends) for start, stop in pieces), starts


def test_a_piece_goes_into_the_fullest_row_that_has_room():
    assert packing.best_fit([6, 5, 3, 2], 8) == [[0, 3], [1, 2]]


def test_a_row_says_what_belongs_together():
    packed = packing.pack([[5, 6, 7], [8, 9]], 6)
    batch = packed.batch([0])
    np.testing.assert_array_equal(batch["input_ids"], [[5, 6, 7, 8, 9, 0]])
    np.testing.assert_array_equal(batch["segments"], [[1, 1, 1, 2, 2, 0]])
    np.testing.assert_array_equal(batch["positions"], [[0, 1, 2, 0, 1, 0]])
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 1, 1, 1, 1, 0]])
    assert packed.fill == 5 / 6


@pytest.mark.slow
def test_packed_documents_have_the_loss_and_gradients_of_the_documents_alone():
    model = llama.Llama(llama.LlamaConfig.tiny())
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), params)
    packed = packing.pack(DOCUMENTS, 16)
    assert any(len(row) > 1 for row in packed.rows)

    @jax.jit
    def run(params, batch):
        def loss(params):
            value, aux = pretrain.loss(model, {"params": params}, batch, None, None)
            return value * aux.weight, aux.weight

        (total, weight), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        return total, weight, gradients

    together = run(params, packed.batch(range(len(packed.rows))))
    alone = []
    for start, stop in packed.pieces:  # each piece as a row of its own, padded on the right
        ids = np.zeros((1, 16), np.int32)
        ids[0, : stop - start] = packed.ids[start:stop]
        alone.append(run(params, {"input_ids": ids, "attention_mask": np.arange(16)[None] < stop - start}))
    assert together[1] == sum(one[1] for one in alone) == sum(stop - start - 1 for start, stop in packed.pieces)
    summed = jax.tree.map(lambda *x: sum(x), *alone)
    np.testing.assert_allclose(together[0], summed[0], rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4), together[2], summed[2])
    leaky = {name: x for name, x in packed.batch(range(len(packed.rows))).items() if name != "segments"}
    assert abs(run(params, leaky)[0] - summed[0]) > 0.1  # documents that see each other have another loss


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="piece of 9 tokens does not fit in a row of 8"):
        packing.best_fit([9], 8)
    with pytest.raises(ValueError, match="length=0"):
        packing.cut([3], 0)
