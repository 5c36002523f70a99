"""Attention: NumPy against the reference, the reference against every implementation, on one device and on eight.

The TPU kernel runs in interpret mode; cuDNN's preparation (padding, masks to biases) runs with XLA in its place.
"""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmjax.ops import attention, choice, masks

FAST = {
    "xla": attention.xla,
    "splash": functools.partial(attention.splash, interpret=True),
    "cudnn": functools.partial(attention.cudnn, backend="xla"),
}


def draw(query_length, key_length, heads=4, key_heads=2, batch=2, width=8, seed=0):
    """query, key, value and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    sizes = [(query_length, heads), (key_length, key_heads), (key_length, key_heads), (query_length, heads)]
    return [jnp.asarray(rng.normal(size=(batch, *size, width)), jnp.float32) for size in sizes]


def output_and_gradients(run, query, key, value, cotangent, mask):
    @jax.jit
    def both(query, key, value, mask):
        out, pull = jax.vjp(lambda *qkv: run(*qkv, mask, 0.3), query, key, value)
        return out, *pull(cotangent)

    return both(query, key, value, mask)


def assert_equal(names, query, key, value, cotangent, mask, runs=FAST):
    """Output and gradients of these implementations are the reference's."""
    wanted = output_and_gradients(attention.reference, query, key, value, cotangent, mask)
    for name in names:
        found = output_and_gradients(runs[name], query, key, value, cotangent, mask)
        for what, a, b in zip(("out", "query", "key", "value"), found, wanted, strict=True):
            # Sums of up to 1,040 products of unit normals, in another order.
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5, err_msg=f"{name}: {what}")


def segments(length, batch=2):
    """Three sequences packed in each row, then three positions that belong to none of the keys' sequences."""
    keys = jnp.sort(jnp.asarray(np.random.default_rng(1).integers(0, 3, (batch, length))), axis=-1)
    return masks.Segments(keys.at[:, -3:].set(7), keys)


VALID = jnp.arange(37) < jnp.array([[20], [0]])  # the second row has no key at all
MASKS = {
    "none": None,
    "causal": masks.Causal(),
    "window": masks.Causal() & masks.SlidingWindow(5),
    "prefix": masks.Prefix(5),
    "prefix by row": masks.Prefix(jnp.array([3, 9])),
    "block causal": masks.BlockCausal((1, 4, 9, 16, 7)),
    "padding": masks.Padding(VALID),
    "causal segments": masks.Causal() & segments(37),
    "segments and padding": masks.Padding(VALID) & segments(37),
    "array": jnp.asarray(np.random.default_rng(2).random((2, 1, 37, 37)) < 0.1),
    "array by head": jnp.asarray(np.random.default_rng(3).random((1, 4, 1, 37)) < 0.5),
}


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([(3, 5), (4, 1)]), st.sampled_from([(2, 1), (4, 2)]), st.integers(0, 99))
def test_reference_is_softmax_over_what_is_allowed(lengths, heads, seed):
    query_length, key_length = lengths
    query, key, value, _ = draw(query_length, key_length, *heads, seed=seed)
    allowed = np.random.default_rng(seed).random((2, heads[0], query_length, key_length)) < 0.6
    wanted = np.zeros(query.shape)
    for b, t, h in np.ndindex(query.shape[:3]):
        shared = h * heads[1] // heads[0]
        pick = allowed[b, h, t]
        if pick.any():
            odds = np.exp(np.float64(key)[b, pick, shared] @ np.float64(query)[b, t, h] * 0.7)
            wanted[b, t, h] = odds / odds.sum() @ np.float64(value)[b, pick, shared]
    found = jax.jit(attention.reference, static_argnums=4)(query, key, value, jnp.asarray(allowed), 0.7)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_every_implementation_equals_the_reference(mask):
    query, key, value, cotangent = draw(37, 37)
    able = [] if attention.why_not_splash(query, mask) else ["splash"]
    assert bool(able) == (isinstance(mask, masks.Mask | None) and mask is not MASKS["prefix by row"])
    if not able or any(mask is MASKS[name] for name in ("none", "causal", "window", "padding")):
        # To these two the remaining masks are [B 1 T S] arrays like any other.
        able += ["xla", "cudnn"]
    assert_equal(able, query, key, value, cotangent, mask)


@pytest.mark.parametrize(
    ("lengths", "mask"),
    [
        ((1, 37), masks.Causal()),
        ((6, 37), MASKS["window"]),
        ((40, 37), masks.Causal()),
        ((6, 37), masks.Padding(VALID)),
    ],
    ids=["decoding", "decoding in a window", "more queries than keys", "Q-Former"],
)
def test_queries_and_keys_of_different_length(lengths, mask):
    assert_equal(["splash", "cudnn"], *draw(*lengths), mask)


def test_splash_works_through_several_tiles(monkeypatch):
    from mmjax.ops.kernels import splash

    monkeypatch.setattr(splash, "TILE", 128)
    assert [splash.tile(length) for length in (1, 128, 129, 300)] == [(128, 128), (128, 128), (128, 256), (128, 384)]
    mask = masks.BlockCausal((120, 1, 100, 79)) & masks.Padding(jnp.arange(300)[None] % 7 > 0)
    assert_equal(["splash"], *draw(200, 300, heads=2, key_heads=1, batch=1), mask)
    # The first 150 queries see no key; the kernel gets one for each, or whole rows of tiles would hold 0 / 0.
    assert_equal(["splash"], *draw(250, 100, heads=2, key_heads=1, batch=1), masks.Causal())
    tiled = splash.Tiled(masks.Causal(), (250, 100), (256, 128))
    assert tiled[0:128, 0:128].any(-1).all()


def test_splash_tiles_are_balanced_multiples_of_the_lanes():
    from mmjax.ops.kernels import splash

    assert splash.tile(577) == (640, 640)
    assert splash.tile(1025) == (640, 1280)  # two tiles of 640, not 1024 + 1024
    assert splash.tile(8192) == (1024, 8192)


def test_queries_that_see_no_key_are_zero_and_send_no_gradient():
    query, key, value, cotangent = draw(37, 37)
    blind = masks.Padding(VALID)
    for run in (attention.reference, FAST["splash"]):  # the other two equal the reference in the test above
        out, *gradients = output_and_gradients(run, query, key, value, cotangent, blind)
        for array in (out, *gradients):
            np.testing.assert_array_equal(array[1], np.zeros(array.shape[1:]))
        assert np.abs(out[0]).min() > 0


@pytest.mark.parametrize("key_heads", [4, 1], ids=["heads split over tensor", "one key head on all of tensor"])
@pytest.mark.parametrize("name", ["splash", "cudnn"])
def test_kernels_run_on_each_devices_part_of_a_mesh(name, key_heads, monkeypatch):
    shape, names = (2, 2, 2, 1), ("data", "fsdp", "tensor", "sequence")
    mesh = Mesh(np.asarray(jax.devices()).reshape(shape), names, axis_types=(AxisType.Auto,) * 4)
    query, key, value, cotangent = draw(10, 10, heads=4, key_heads=key_heads, batch=4)
    mask = masks.Causal() & masks.Padding(jnp.arange(10) >= jnp.arange(4)[:, None])
    seen, per_device = set(), attention._per_device

    def spy(run, *inputs):
        return per_device(lambda *local: (seen.add(local[0].shape), run(*local))[1], *inputs)

    monkeypatch.setattr(attention, "_per_device", spy)
    split = PartitionSpec(("data", "fsdp"), None, "tensor" if key_heads == 4 else None)
    with jax.set_mesh(mesh):
        query, key, value = (jax.device_put(x, NamedSharding(mesh, split)) for x in (query, key, value))
        assert_equal([name], query, key, value, cotangent, mask)
    assert seen == {(1, 10, 2 if key_heads == 4 else 4, 8)}


def platforms(length, mask, dtype=jnp.float32):
    """Which kernels the automatic choice may take."""
    x = jax.ShapeDtypeStruct((2, length, 2, 8), dtype)
    text = str(jax.make_jaxpr(lambda x, mask: attention.attention(x, x, x, mask=mask))(x, mask))
    return {"splash"} if "splash" in text else set()


def test_the_automatic_choice_offers_splash_to_long_sequences_only():
    assert platforms(512, masks.Causal()) == set()
    assert platforms(520, masks.Causal()) == {"splash"}
    assert platforms(520, jnp.ones((1, 1, 520, 520), bool)) == set()
    assert platforms(520, masks.Prefix(jnp.ones(2, int))) == set()
    assert platforms(520, None, jnp.float16) == set()


def test_the_automatic_choice_runs_on_this_platform_and_says_once_what_it_took(caplog):
    query, key, value, cotangent = draw(520, 520, heads=2, key_heads=1, batch=1)
    choice.say.cache_clear()
    run = lambda q, k, v, mask, scale: attention.attention(q, k, v, mask=mask, scale=scale)  # noqa: E731
    with caplog.at_level(logging.DEBUG, logger="mmjax"):
        assert_equal(["automatic"], query, key, value, cotangent, masks.Causal(), {"automatic": run})
        attention.attention(query, key, value)
        attention.attention(query, key, value)
    assert [record.message for record in caplog.records] == [
        "attention float32 (1, 520, 2, 8) x (1, 520, 1, 8): splash on tpu, xla elsewhere"
    ]


def test_default_scale_is_one_over_the_root_of_the_width():
    query, key, value, _ = draw(5, 5, width=9)
    wanted = attention.reference(query, key, value, None, 1 / 3)
    for name in (None, "xla", "reference"):
        found = attention.attention(query, key, value, implementation=name)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_bfloat16_stays_bfloat16():
    query, key, value, _ = [x.astype(jnp.bfloat16) for x in draw(9, 9)]
    wanted = attention.reference(*(x.astype(jnp.float32) for x in (query, key, value)), masks.Causal(), 0.3)
    for run in (attention.reference, attention.xla, FAST["splash"]):
        found = jax.jit(lambda *inputs, run=run: run(*inputs, masks.Causal(), 0.3))(query, key, value)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(found), wanted, atol=0.03)  # 8 bits of values up to 4, weights rounded


def test_an_implementation_that_cannot_run_is_an_error():
    query, key, value, _ = draw(8, 8)
    call = functools.partial(attention.attention, query, key, value)
    with pytest.raises(ValueError, match=r"one of \['reference', 'xla', 'splash', 'cudnn'\], got 'flash'"):
        call(implementation="flash")
    with pytest.raises(ValueError, match="no bool array as mask"):
        call(mask=jnp.ones((1, 1, 8, 8), bool), implementation="splash")
    with pytest.raises(ValueError, match="not one length per row"):
        call(mask=masks.Prefix(jnp.array([1, 2])), implementation="splash")
    with pytest.raises(ValueError, match="one masks.Segments"):
        call(mask=segments(8) & segments(8), implementation="splash")
    with pytest.raises(ValueError, match="interpret mode"):
        call(implementation="splash")  # Pallas itself: this lowers for a CPU
    with pytest.raises(ValueError, match=r"implementation='cudnn': (cuDNN is not detected|Q must be fp16)"):
        call(implementation="cudnn")  # no plugin; or, where there is one, float32


def test_shapes_that_do_not_fit_are_errors():
    query, key, value, _ = draw(8, 9)
    for error, args, mask in (
        (r"\[B T H D\]", (query, key, value[:, :8]), None),
        ("agree in batch", (query[:1], key, value), None),
        ("must divide", (query[:, :, :3], key, value), None),
        (r"use masks.Padding", (query, key, value), jnp.ones((2, 9), bool)),
        (r"float32 \(1, 1, 8, 9\)", (query, key, value), jnp.ones((1, 1, 8, 9))),
        (r"S = 9 keys", (query, key, value), masks.Padding(jnp.ones((2, 8), bool))),
        (r"bool \(3, 1, 8, 9\)", (query, key, value), masks.Padding(jnp.ones((3, 9), bool))),
    ):
        with pytest.raises(ValueError, match=error):
            attention.attention(*args, mask=mask)
