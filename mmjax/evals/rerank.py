"""Retrieval in two steps: cosines say who is worth a closer look, a slower judge of pairs looks.

Source: Li et al. 2023, arXiv:2301.12597, section 4.4; salesforce/LAVIS, blip2_models/blip2.py, compute_sim_matrix.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.models import qformer

UNRANKED = -100.0  # the score of pairs that nobody looks at


def reranked(judge: Callable, cosines: jax.Array, count: int) -> jax.Array:
    """cosines [R C] of what is asked with what there is -> scores [R C]: of each row's `count` best the cosine and the
    judge's logit, UNRANKED of the others. judge: (row [] int, candidates [count] int) -> logits [count]."""
    count = min(count, cosines.shape[1])
    best, candidates = jax.lax.top_k(cosines, count)
    rows = jnp.arange(len(cosines))
    logits = jax.lax.map(lambda pair: judge(*pair), (rows, candidates))
    return jnp.full_like(cosines, UNRANKED).at[rows[:, None], candidates].set(best + logits)


@partial(jax.jit, static_argnames=("model", "count"))
def scores(
    model: qformer.Blip2Retrieval, variables: Any, images: jax.Array, input_ids: jax.Array, attention_mask: jax.Array,
    count: int = 128,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """images [I H W 3], input_ids and attention_mask [T L] -> scores of the texts for each picture [I T], and of the
    pictures for each text [T I]. count: how many candidates of each are looked at."""
    call = partial(model.apply, variables)
    states = call(images, method="see")
    cosines = qformer.strongest(
        call(states, method="answers"), call(input_ids, attention_mask, method="encode_text")
    )  # [I T]

    def judge(pictures: jax.Array, texts: jax.Array) -> jax.Array:  # [count] each -> [count]
        return call(states[pictures], input_ids[texts], attention_mask[texts], method="match")[:, 1]

    as_many = lambda row, others: jnp.broadcast_to(row, others.shape)  # noqa: E731
    to_texts = reranked(lambda row, texts: judge(as_many(row, texts), texts), cosines, count)
    to_images = reranked(lambda row, pictures: judge(pictures, as_many(row, pictures)), cosines.T, count)
    return to_texts, to_images
