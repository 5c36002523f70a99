"""The key-value cache: the same as without it, written in place, and every row at its own position."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PostNormBlock, PreNormBlock
from mmjax.nn.cache import NOTHING, KVCache, Layer
from mmjax.nn.mlp import MLP
from mmjax.nn.norms import LayerNorm
from mmjax.nn.stack import Stack
from mmjax.ops import masks

DEPTH, HEADS, WIDTH = 3, 2, 4
X = np.random.default_rng(0).normal(size=(2, 7, 16)).astype(np.float32)


class Model(nn.Module):
    kind: type = PreNormBlock

    def setup(self):
        attention = partial(Attention, 4, num_kv_heads=HEADS, head_dim=WIDTH)
        self.layers = Stack(partial(self.kind, attention, partial(MLP, 12), LayerNorm), DEPTH)

    def __call__(self, x, mask):
        return self.layers(x, mask)[0]

    def extend(self, x, cache, valid=None, window=None):
        _, mask, cache = cache.open(x.shape[:2], valid, window)
        x, cache = self.layers(x, mask, cache=cache)
        return x, cache.close()


def empty(length=9):
    return KVCache.empty(DEPTH, 2, length, HEADS, WIDTH)


@pytest.fixture(scope="module", params=[PreNormBlock, PostNormBlock])
def model(request):
    model = Model(request.param)
    return model, jax.jit(model.init)(jax.random.key(0), X, masks.Causal())


@pytest.mark.parametrize("window", [None, 3])
def test_token_by_token_equals_all_at_once(model, window):
    model, variables = model
    mask = masks.Causal() if window is None else masks.Causal() & masks.SlidingWindow(window)
    expected = model.apply(variables, X, mask)
    extend = jax.jit(partial(model.apply, method="extend", window=window))
    cache, found = empty(), []
    for part in (X[:, :3], X[:, 3:4], X[:, 4:6], X[:, 6:]):  # prompts, single tokens, and more after the first
        out, cache = extend(variables, part, cache)
        found.append(out)
    np.testing.assert_allclose(np.concatenate(found, axis=1), expected, atol=1e-5)
    np.testing.assert_array_equal(cache.positions, [[*range(7), NOTHING, NOTHING]] * 2)
    assert cache.used == 7


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_of_either_side_takes_slots_that_nobody_sees(model, side, window):
    model, variables = model
    counts = np.array([2, 4])
    valid = np.arange(4) < counts[:, None] if side == "right" else np.arange(4) >= 4 - counts[:, None]
    prompt = np.full((2, 4, 16), 9, np.float32)
    for row, count in enumerate(counts):
        prompt[row, valid[row]] = X[row, :count]
    extend = jax.jit(partial(model.apply, method="extend", window=window))
    _, cache = extend(variables, prompt, empty(), valid)
    tokens = np.stack([X[row, count : count + 1] for row, count in enumerate(counts)])
    out, cache = extend(variables, tokens, cache)
    mask = masks.Causal() if window is None else masks.Causal() & masks.SlidingWindow(window)
    for row, count in enumerate(counts):
        expected = model.apply(variables, X[row : row + 1, : count + 1], mask)[0, -1]
        np.testing.assert_allclose(out[row, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(cache.positions[:, 4], counts)


def test_a_donated_cache_is_written_in_place(model):
    model, variables = model
    cache = KVCache.empty(DEPTH, 2, 512, HEADS, WIDTH).close()
    compiled = jax.jit(partial(model.apply, method="extend"), donate_argnums=2).lower(variables, X[:, :1], cache)
    stats = compiled.compile().memory_analysis()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert stats.alias_size_in_bytes == size
    # A copy of the cache, as inputs or outputs of the loop over layers would make, is twice what all else takes.
    assert stats.temp_size_in_bytes < size


def test_a_fresh_cache_has_a_static_mask_and_a_used_one_looks_at_the_slots():
    shape = (2, 3)
    _, mask, _ = empty().open(shape)
    assert mask == masks.Causal()
    _, mask, _ = empty().open(shape, jnp.ones(shape, bool), 5)
    assert masks.parts(mask)[:2] == (masks.Causal(), masks.SlidingWindow(5))
    _, mask, _ = empty().close().open(shape)
    np.testing.assert_array_equal(mask[0, 0], np.tri(3, 9, dtype=bool))


def test_rows_follow_an_order(model):
    model, variables = model
    _, cache = model.apply(variables, X[:, :3], empty(), method="extend")
    out, _ = model.apply(variables, X[[1, 1, 0], 3:4], cache.rows(jnp.array([1, 1, 0])), method="extend")
    expected, _ = model.apply(variables, X[:, 3:4], cache, method="extend")
    np.testing.assert_allclose(out, expected[jnp.array([1, 1, 0])], atol=1e-5)


def test_attention_looks_at_keys_and_values_made_before():
    module, context = Attention(4, num_kv_heads=HEADS), X[:, :5]
    variables = module.init(jax.random.key(1), X, context=context)
    params = variables["params"]
    pair = [(context @ params[n]["kernel"] + params[n]["bias"]).reshape(2, 5, HEADS, 4) for n in ("key", "value")]
    np.testing.assert_allclose(
        module.apply(variables, X, context=tuple(pair)), module.apply(variables, X, context=context), atol=1e-5
    )
    whole = KVCache.empty(1, 2, 5, HEADS, 4).open((2, 5))[2]  # what an encoder gave, kept for all steps of a decoder
    out, whole = module.apply(variables, X, context=context, cache=Layer(whole, jnp.array(0)))
    for kept, one in zip(whole.read(0), pair, strict=True):
        np.testing.assert_allclose(kept, one, atol=1e-5)
    np.testing.assert_allclose(out, module.apply(variables, X, context=context), atol=1e-6)


def test_a_layer_reads_and_writes_its_own_part():
    whole = {"state": jnp.arange(6.0).reshape(3, 2)}
    layer = Layer(whole, jnp.array(1))
    np.testing.assert_array_equal(layer.read()["state"], [2, 3])
    np.testing.assert_array_equal(layer.write({"state": jnp.array([8, 9])})["state"], [[0, 1], [8, 9], [4, 5]])


def test_more_tokens_than_slots_are_refused():
    with pytest.raises(ValueError, match="has 9 slots, got 10 tokens"):
        empty().open((2, 10))
