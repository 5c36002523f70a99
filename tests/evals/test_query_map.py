"""Where queries look: weights that, times what is looked at, give what the model gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

from mmjax.evals import query_map
from mmjax.models import qformer
from mmjax.nn.mlp import gelu


def normed(x, weights):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * weights["scale"] + weights["bias"]


def linear(x, weights):
    return x @ weights["kernel"] + weights["bias"]


@pytest.mark.parametrize("depth", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_weights_are_those_of_the_last_block_that_looks(depth):
    """Every block looks here, and the last one is the end."""
    tiny = qformer.RetrievalConfig.tiny()
    config = dataclasses.replace(tiny, qformer=dataclasses.replace(tiny.qformer, depth=depth, cross_every=1))
    model = qformer.Blip2Retrieval(config)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 32, 32, 3)).astype(np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images, np.zeros((2, 3), np.int32))
    variables = jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)
    found = np.asarray(query_map.looks(model, variables, images))
    assert found.shape == (2, 2, 4, config.vision.num_patches + config.vision.prefix)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)

    tree = variables["params"]["qformer"]
    block = jax.tree.map(lambda x: x[-1], tree["layers"]["block0"])
    states = model.apply(variables, images, method="see")
    tokens = np.broadcast_to(variables["params"]["query_tokens"], (2, 4, 16))
    whole = qformer.QFormer(config.qformer)
    if depth == 1:
        before = normed(tokens, tree["norm"])
    else:
        stack = {"norm": tree["norm"], "layers": jax.tree.map(lambda x: x[:-1], tree["layers"])}
        fewer = qformer.QFormer(dataclasses.replace(config.qformer, depth=depth - 1))
        before = fewer.apply({"params": stack}, tokens, states).queries
    mine = [
        rearrange(linear(before, block["attention"][n]), "b t (h d) -> b h t d", h=2) for n in ("query", "key", "value")
    ]
    chances = jax.nn.softmax(jnp.einsum("bhtd,bhsd->bhts", mine[0], mine[1]) / np.sqrt(8))
    x = rearrange(jnp.einsum("bhts,bhsd->bhtd", chances, mine[2]), "b h t d -> b t (h d)")
    x = normed(before + linear(x, block["attention"]["out"]), block["norm1"])
    values = rearrange(linear(states, block["cross"]["value"]), "b s (h d) -> b h s d", h=2)
    y = rearrange(jnp.einsum("bhqs,bhsd->bhqd", found, values), "b h q d -> b q (h d)")
    x = normed(x + linear(y, block["cross"]["out"]), block["cross_norm"])
    x = normed(x + linear(gelu(linear(x, block["query_mlp"]["up"])), block["query_mlp"]["down"]), block["query_norm"])
    out = whole.apply({"params": tree}, tokens, states).queries
    np.testing.assert_allclose(x, out, atol=2e-5)
