"""Attention: one signature, several implementations with one result.

    softmax(scale * query key^T over the keys that the mask allows) value

B batch, T query length, S key length, H query heads, K key heads (each shared by H / K query heads), D head width.
A query that may look at no key gets zeros, and sends no gradient, in every implementation.

    reference   plain einsum in float32; the specification
    xla         jax.nn.dot_product_attention; runs everywhere, keeps [B H T S] weights for the backward pass
    splash      TPU: Pallas kernel from jax; memory linear in T and S; skips the tiles that a static mask hides
    cudnn       NVIDIA GPU: cuDNN's fused kernel; memory linear in T and S unless the mask is a bias (see ops/masks.py)

With `implementation=None` the choice falls when the program is lowered, by the platform that it is lowered for, so a
plan for a TPU that is made on a laptop holds the TPU's kernel: splash on a TPU above SHORT, cudnn on an NVIDIA GPU for
float16 and bfloat16, xla for all else. Under a mesh the kernels run on each device's part: the batch split over BATCH,
heads over TENSOR, as far as they divide; the length is not split.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.sharding import PartitionSpec

from mmjax.ops import choice, masks, sharding

# T x S up to which XLA's plain attention is taken on TPU. There the weights [B H T S] are about as large as the MLP's
# hidden layer, and splash would pad 197 or 257 tokens to a multiple of 128. Chosen by memory, not timed on a TPU.
SHORT = 512 * 512

AnyMask = masks.Mask | jax.Array | None


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: AnyMask = None,
    scale: float | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """query [B T H D], key and value [B S K D] -> [B T H D].

    mask: an object of `ops.masks`, or bool [B|1 H|1 T|1 S], True where the query may look at the key; None is all.
    scale: D ** -0.5 where None. A named `implementation` that cannot do this is an error.
    """
    _check(query, key, value, mask)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if implementation is not None:
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"implementation must be None or one of {list(IMPLEMENTATIONS)}, got {implementation!r}")
        run, why_not = IMPLEMENTATIONS[implementation]
        if reason := why_not(query, mask):
            raise ValueError(f"attention cannot use implementation={implementation!r}: {reason}")
        return run(query, key, value, mask, scale)

    kernels = {}
    if query.shape[1] * key.shape[1] > SHORT and not why_not_splash(query, mask):
        kernels["tpu"] = splash
    if not why_not_cudnn(query, mask):
        kernels["cuda"] = cudnn
    taken = [f"{kernel.__name__} on {platform}" for platform, kernel in kernels.items()]
    choice.say(f"attention {query.dtype} {query.shape} x {key.shape}: {', '.join([*taken, 'xla elsewhere'])}")
    if not kernels:
        return xla(query, key, value, mask, scale)
    branches = {platform: functools.partial(kernel, scale=scale) for platform, kernel in kernels.items()}
    return jax.lax.platform_dependent(query, key, value, mask, default=functools.partial(xla, scale=scale), **branches)


def reference(query: jax.Array, key: jax.Array, value: jax.Array, mask: AnyMask, scale: float) -> jax.Array:
    """The specification."""
    grouped = rearrange(query.astype(jnp.float32), "b t (k g) d -> b t k g d", k=key.shape[2])
    scores = scale * jnp.einsum("btkgd,bskd->bkgts", grouped, key.astype(jnp.float32), precision="highest")
    allowed = jnp.broadcast_to(_dense(mask, query, key), (query.shape[0], query.shape[2], *scores.shape[-2:]))
    allowed = rearrange(allowed, "b (k g) t s -> b k g t s", k=key.shape[2])
    weights = jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(jnp.float32).min))
    weights = jnp.where(allowed, weights, 0)  # also where nothing is allowed, and softmax spreads evenly
    out = jnp.einsum("bkgts,bskd->btkgd", weights, value.astype(jnp.float32), precision="highest")
    return rearrange(out, "b t k g d -> b t (k g) d").astype(query.dtype)


def xla(query: jax.Array, key: jax.Array, value: jax.Array, mask: AnyMask, scale: float) -> jax.Array:
    """JAX's own einsums, with weights in the input's type; softmax is in float32."""
    dense = None if _sees_all(mask) else _dense(mask, query, key)
    out = jax.nn.dot_product_attention(query, key, value, mask=dense, scale=scale, implementation="xla")
    return _zero_where_blind(out, mask, query, key)


def splash(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AnyMask, scale: float, interpret: bool = False
) -> jax.Array:
    """The TPU kernel on each device's part; `interpret` runs it on any platform, slowly."""
    from mmjax.ops.kernels import splash as kernel  # imports Pallas, which takes a while

    static, queries, keys = kernel.split(masks.Full() if mask is None else mask, key)
    run = functools.partial(kernel.attention, static=static, scale=scale, interpret=interpret)
    return _zero_where_blind(_per_device(run, query, key, value, queries, keys), mask, query, key)


def cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AnyMask, scale: float, backend: str = "cudnn"
) -> jax.Array:
    """cuDNN's kernel on each device's part. It trains on even lengths only, so odd ones are padded by one.

    `backend="xla"` runs the same preparation without a GPU.
    """
    length, odd_queries, odd_keys = query.shape[1], query.shape[1] % 2, key.shape[1] % 2
    causal, window = _causal(mask) if length == key.shape[1] else (False, None)  # cuDNN's counts from the first key
    dense = None if causal or _sees_all(mask) else _dense(mask, query, key)
    if dense is not None:  # becomes a bias, which hides the padding too
        dense = jnp.broadcast_to(dense, (*dense.shape[:2], length, key.shape[1]))
        dense = jnp.pad(dense, ((0, 0), (0, 0), (0, odd_queries), (0, odd_keys)))

    def run(query, key, value, dense):  # [b t h D], [b s k D], [b|1 h|1 t s]
        count = lambda x, odd: jnp.full(x.shape[0], x.shape[1] - odd, jnp.int32)  # noqa: E731
        padded = dense is None and bool(odd_queries or odd_keys)
        lengths = {"query_seq_lengths": count(query, odd_queries), "key_value_seq_lengths": count(key, odd_keys)}
        return jax.nn.dot_product_attention(
            query, key, value, mask=dense, is_causal=causal, scale=scale, implementation=backend,
            local_window_size=window, **(lengths if padded else {}),
        )  # fmt: skip

    pad = lambda x, odd: jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0)))  # noqa: E731
    out = _per_device(run, pad(query, odd_queries), pad(key, odd_keys), pad(value, odd_keys), dense)
    return _zero_where_blind(out[:, :length], mask, query, key)


def why_not_splash(query: jax.Array, mask: AnyMask) -> str:
    """Why the TPU kernel cannot do this; empty if it can."""
    if query.dtype not in (jnp.float32, jnp.bfloat16):
        return f"the TPU kernel takes float32 and bfloat16, got {query.dtype}"
    if mask is None:
        return ""
    if not isinstance(mask, masks.Mask):
        return "the TPU kernel takes no bool array as mask; build it from ops.masks"
    data = [type(part) for part in masks.parts(mask) if not part.static]
    if masks.Prefix in data:
        return "the TPU kernel takes masks.Prefix(int), not one length per row"
    return "the TPU kernel takes one masks.Segments" if data.count(masks.Segments) > 1 else ""


def why_not_cudnn(query: jax.Array, mask: AnyMask) -> str:
    """Why cuDNN cannot do this; empty if it can. It can take any mask, as a bias."""
    return _cudnn_refuses(query.dtype, query.shape[-1])


@functools.cache
def _cudnn_refuses(dtype: jnp.dtype, width: int) -> str:
    """Asks JAX, whose rules change between versions; it answers without a GPU, but not without its CUDA plugin."""
    x = jax.ShapeDtypeStruct((1, 2, 1, width), dtype)
    kernel = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    try:
        jax.eval_shape(lambda x: jax.vjp(kernel, x, x, x)[0], x)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error)
    return ""


IMPLEMENTATIONS: dict[str, tuple[Callable, Callable]] = {
    "reference": (reference, lambda query, mask: ""),
    "xla": (xla, lambda query, mask: ""),
    "splash": (splash, why_not_splash),
    "cudnn": (cudnn, why_not_cudnn),
}


def _per_device(run: Callable, query: jax.Array, key: jax.Array, value: jax.Array, *others: jax.Array | None):
    """Calls `run` on each device's part of the batch and the heads; GSPMD cannot cut a kernel by itself.

    `others` have the batch first and, if they have four axes, the heads second; either may be 1.
    """
    names = sharding.axes(*jax.sharding.get_abstract_mesh().axis_names)
    if not names:
        return run(query, key, value, *others)
    batch, heads = sharding.axes(*sharding.BATCH), sharding.axes(sharding.TENSOR)
    batch = batch if query.shape[0] % sharding.shards(*batch) == 0 else ()
    heads = heads if key.shape[2] % sharding.shards(*heads) == 0 else ()

    def spec(x):
        first = batch if x.shape[0] == query.shape[0] else ()
        second = heads if x.ndim == 4 and x.shape[1] == query.shape[2] else ()
        return PartitionSpec(first or None, second or None)

    whole = PartitionSpec(batch or None, None, heads or None)
    return jax.shard_map(
        run,
        in_specs=(whole, whole, whole, *(None if x is None else spec(x) for x in others)),
        out_specs=whole,
        axis_names=set(names),
        check_vma=False,  # kernels do not say over which axes their results vary
    )(query, key, value, *others)


def _causal(mask: AnyMask) -> tuple[bool, tuple[int, int] | None]:
    """Whether the mask is Causal and maybe a SlidingWindow, and then how far it reaches back and ahead."""
    found = masks.parts(mask) if isinstance(mask, masks.Mask) else ()
    windows = [part.size - 1 for part in found if isinstance(part, masks.SlidingWindow)]
    causal = [part for part in found if isinstance(part, masks.Causal)]
    if not causal or len(windows) + len(causal) < len(found):
        return False, None
    return True, (min(windows), 0) if windows else None


def _sees_all(mask: AnyMask) -> bool:
    return mask is None or isinstance(mask, masks.Full)


def _dense(mask: AnyMask, query: jax.Array, key: jax.Array) -> jax.Array:
    """bool [B|1 H|1 T|1 S]."""
    mask = masks.Full() if mask is None else mask
    return mask.dense(query.shape[1], key.shape[1]) if isinstance(mask, masks.Mask) else mask


def _zero_where_blind(out: jax.Array, mask: AnyMask, query: jax.Array, key: jax.Array) -> jax.Array:
    """Zeros for queries that see no key, where softmax leaves an average over hidden values. [B T H D] -> same."""
    if _sees_all(mask) or (isinstance(mask, masks.Mask) and mask.static and query.shape[1] <= key.shape[1]):
        return out  # a static mask lets every position see itself
    sees = _dense(mask, query, key).any(-1)  # fuses: the [T S] mask is not kept
    return jnp.where(rearrange(sees, "b h t -> b t h 1"), out, 0)


def _check(query: jax.Array, key: jax.Array, value: jax.Array, mask: AnyMask) -> None:
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if query.ndim != 4 or key.ndim != 4 or key.shape != value.shape:
        raise ValueError(f"attention takes query [B T H D] and key and value [B S K D], got {shapes}")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(f"query and key must agree in batch and head width, got {shapes}")
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"the number of key heads must divide the number of query heads, got {shapes}")
    if mask is None:
        return
    dense = jax.eval_shape(lambda mask: _dense(mask, query, key), mask)  # a mask object checks its own lengths
    wanted = (query.shape[0], query.shape[2], query.shape[1], key.shape[1])
    fits = dense.ndim == 4 and all(found in (1, size) for found, size in zip(dense.shape, wanted, strict=True))
    if dense.dtype != bool or not fits:
        raise ValueError(
            f"mask must be an object of ops.masks or bool [B H T S] = {wanted}, with 1 where it repeats, got "
            f"{dense.dtype} {dense.shape}; for valid keys [B S] use masks.Padding, for [T S] use mask[None, None]"
        )
