"""What may look at what, as small objects instead of [T S] arrays, so that a fast attention can skip what is hidden.

B batch, T query length, S key length. True means: the query may look at the key. Combine with `&`:
`Causal() & Padding(valid)`. All are pytrees: arrays inside are leaves, sizes are static.

Where T < S the queries are the LAST T of S positions, as in decoding with a cache: query i stands at position
i + S - T. (Where T > S, the first T - S queries stand before all keys and see none of them causally.)

    mask            depends on     TPU (splash)                 cuDNN                      elsewhere
    Causal          positions      tiles skipped                causal if T == S, or bias  [T S] bools
    Prefix(int)     positions      tiles skipped                bias                       [T S] bools
    BlockCausal     positions      tiles skipped                bias                       [T S] bools
    SlidingWindow   positions      tiles skipped                window if with Causal      [T S] bools
    Segments        data           segment ids                  bias                       [B T S] bools
    Padding         data           segment ids                  bias                       [B T S] bools
    Prefix([B])     data           no: a row-wise union of two  bias                       [B T S] bools
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


class Mask:
    """A rule for which pairs of query and key count."""

    @property
    def static(self) -> bool:
        """Whether positions alone decide. Each such mask lets every position look at itself."""
        return False

    def allowed(self, queries, keys):
        """For static masks: positions [T 1] and [1 S], NumPy or JAX -> bool [T S]."""
        raise NotImplementedError(f"{type(self).__name__} depends on data; use dense()")

    def dense(self, query_length: int, key_length: int) -> jax.Array:
        """bool [B|1 1 T S]."""
        queries = jnp.arange(query_length)[:, None] + key_length - query_length
        allowed = self.allowed(queries, jnp.arange(key_length)[None])
        return jnp.broadcast_to(allowed, (1, 1, query_length, key_length))

    def __and__(self, other: "Mask") -> "Mask":
        both = parts(self) + parts(other)
        return both[0] if len(both) == 1 else All(both) if both else Full()


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Full(Mask):
    """Every query looks at every key."""

    @property
    def static(self) -> bool:
        return True

    def allowed(self, queries, keys):
        return keys >= 0


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """No query looks at a later position."""

    @property
    def static(self) -> bool:
        return True

    def allowed(self, queries, keys):
        return keys <= queries


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["size"])
@dataclasses.dataclass(frozen=True)
class SlidingWindow(Mask):
    """A query looks at the `size` positions that end with its own, and at later ones: `Causal() & SlidingWindow(4096)`
    is Beltagy et al. 2020, arXiv:2004.05150, section 3.1, as decoders use it."""

    size: int

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"SlidingWindow.size must be at least 1, got {self.size}")

    @property
    def static(self) -> bool:
        return True

    def allowed(self, queries, keys):
        return queries - keys < self.size


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["sizes"])
@dataclasses.dataclass(frozen=True)
class BlockCausal(Mask):
    """Positions come in blocks of these sizes; a query looks at its own block and the earlier ones (VAR's scales)."""

    sizes: tuple[int, ...]

    @property
    def static(self) -> bool:
        return True

    def allowed(self, queries, keys):
        ends = np.cumsum(self.sizes)
        block = lambda positions: (positions[..., None] >= ends).sum(-1)  # noqa: E731
        return block(keys) <= block(queries)

    def dense(self, query_length: int, key_length: int) -> jax.Array:
        if not query_length <= key_length <= sum(self.sizes):
            raise ValueError(
                f"BlockCausal covers {sum(self.sizes)} positions (sizes {self.sizes}) and its queries are the last of "
                f"the keys, got {query_length} queries and {key_length} keys"
            )
        return super().dense(query_length, key_length)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """Prefix language model: the first `lengths` keys are seen by all queries, the others causally."""

    lengths: int | jax.Array  # one for all rows (static), or int [B]

    @property
    def static(self) -> bool:
        return isinstance(self.lengths, int)

    def allowed(self, queries, keys):
        return (keys <= queries) | (keys < self.lengths)

    def dense(self, query_length: int, key_length: int) -> jax.Array:
        if self.static:
            return super().dense(query_length, key_length)
        causal = Causal().dense(query_length, key_length)
        return causal | (jnp.arange(key_length) < self.lengths[:, None, None, None])

    def tree_flatten(self):
        return ((), self.lengths) if self.static else ((self.lengths,), None)

    @classmethod
    def tree_unflatten(cls, static, leaves):
        return cls(*leaves) if leaves else cls(static)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["valid"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Padding(Mask):
    """Keys that are padding are seen by none."""

    valid: jax.Array  # bool [B S], True where the key counts

    def dense(self, query_length: int, key_length: int) -> jax.Array:
        batch, found = self.valid.shape
        if found != key_length:
            raise ValueError(f"Padding.valid must be [B S] with S = {key_length} keys, got {self.valid.shape}")
        return jnp.broadcast_to(self.valid[:, None, None, :], (batch, 1, query_length, key_length))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["queries", "keys"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Several sequences packed into one row: a query looks at the keys that carry its own number (0 or more)."""

    queries: jax.Array  # int [B T]
    keys: jax.Array  # int [B S]

    def dense(self, query_length: int, key_length: int) -> jax.Array:
        found = self.queries.shape[-1], self.keys.shape[-1]
        if found != (query_length, key_length):
            raise ValueError(f"Segments must number {query_length} queries and {key_length} keys, got {found}")
        return (self.queries[:, :, None] == self.keys[:, None, :])[:, None]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["masks"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class All(Mask):
    """What every one of `masks` allows; made by `&`."""

    masks: tuple[Mask, ...]

    @property
    def static(self) -> bool:
        return all(mask.static for mask in self.masks)

    def allowed(self, queries, keys):
        return functools.reduce(lambda a, b: a & b, [mask.allowed(queries, keys) for mask in self.masks])

    def dense(self, query_length: int, key_length: int) -> jax.Array:
        return functools.reduce(lambda a, b: a & b, [mask.dense(query_length, key_length) for mask in self.masks])


def parts(mask: Mask) -> tuple[Mask, ...]:
    """The masks that `mask` is the conjunction of; none for Full."""
    if isinstance(mask, All):
        return mask.masks
    return () if isinstance(mask, Full) else (mask,)


def causal(valid: jax.Array | None = None, segments: jax.Array | None = None, window: int | None = None) -> Mask:
    """What a decoder's tokens look at: those before them that count (bool [B T]), in their own segment (int [B T]),
    within the window."""
    mask = Causal() if window is None else Causal() & SlidingWindow(window)
    if segments is not None:
        mask = mask & Segments(segments, segments)
    return mask if valid is None else mask & Padding(valid)
