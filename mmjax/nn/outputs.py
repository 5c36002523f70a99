"""The small structs that cross a boundary: what a loss, an eval and a sampler hand back."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from flax import struct

EMPTY: Mapping = MappingProxyType({})


class Aux(NamedTuple):
    """What a loss hands back beside its scalar."""

    metrics: Mapping[str, jax.Array]  # flat; scalars over the global batch
    collections: Mapping = EMPTY  # variable collections that this step changed: codebook, center, batch statistics
    weight: jax.Array | None = None  # what the mean divides by (tokens); None = the loss looks across the batch


class Result(NamedTuple):
    """What an eval hands back."""

    metrics: Mapping[str, float]  # flat
    pictures: Mapping[str, np.ndarray] = EMPTY  # title -> [H W 3] uint8, or [T H W 3] that moves, for report.html


class Request(NamedTuple):
    """What a person asks of a trained system (`mmjax sample`)."""

    texts: tuple[str, ...] = ()
    images: tuple[np.ndarray, ...] = ()  # each [H W 3] uint8


class Answer(NamedTuple):
    """What a system answers: words for the terminal and pictures for the folder."""

    text: str
    pictures: Mapping[str, np.ndarray] = EMPTY  # file stem -> [H W 3] uint8, or [T H W 3] that moves


@struct.dataclass
class LMOutput:
    """What a causal language model computes of its tokens."""

    last_hidden_state: jax.Array  # [B T D] after the last norm; what losses read, without the logits of all tokens
    logits: jax.Array  # [B T V] float32, of the token that follows; under jit they cost nothing where nobody reads them
    hidden_states: jax.Array | None = None  # [L B T D] after each block, where asked for with collect=True
