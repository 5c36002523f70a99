"""Where the queries of a Q-Former look.

Source: Li et al. 2023, arXiv:2301.12597, figure 2: queries read the picture in cross-attention, in every second block.

B pictures, H heads, Q queries, S tokens of a picture, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from mmjax.models import qformer
from mmjax.nn.attention import Attention
from mmjax.nn.norms import LayerNorm


def looks(model: qformer.Blip2Retrieval, variables: Any, images: jax.Array) -> jax.Array:
    """images [B s s 3] -> [B H Q S], which sum to 1 over S: cross-attention of the last block of the stack that looks,
    where the queries are alone."""
    c, params = model.config.qformer, variables["params"]
    norm = LayerNorm(c.epsilon, parent=None)
    states = model.apply(variables, images, method="see")
    queries = jnp.broadcast_to(params["query_tokens"], (len(states), *params["query_tokens"].shape))

    tree = params["qformer"]
    last = c.depth // c.cross_every - 1
    if last:  # what the periods before it make of the queries
        before = qformer.QFormer(dataclasses.replace(c, depth=last * c.cross_every), parent=None)
        tree_before = {"norm": tree["norm"], "layers": jax.tree.map(lambda x: x[:last], tree["layers"])}
        queries = before.apply({"params": tree_before}, queries, states).queries
    else:
        queries = norm.apply({"params": tree["norm"]}, queries)

    block = jax.tree.map(lambda x: x[last], tree["layers"]["block0"])
    y = Attention(c.num_heads, parent=None).apply({"params": block["attention"]}, queries)
    queries = norm.apply({"params": block["norm1"]}, queries + y)

    def heads(x: jax.Array, name: str) -> jax.Array:  # [B T C] -> [B T H D/H]
        weights = block["cross"][name]
        x = jnp.einsum("btc,cd->btd", x, weights["kernel"], precision="highest") + weights["bias"]
        return rearrange(x, "b t (h d) -> b t h d", h=c.num_heads)

    query, key = heads(queries, "query"), heads(states, "key")
    scores = jnp.einsum("bqhd,bshd->bhqs", query, key, precision="highest") * query.shape[-1] ** -0.5
    return jax.nn.softmax(scores)
