"""The causal depthwise convolution against NumPy, its borders, and what decoding remembers of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.ops import conv


def draw(batch, length, channels, taps, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, channels), (taps, channels), (channels,), (batch, taps - 1, channels)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 99))
def test_each_token_sees_itself_with_the_last_tap_and_those_before_with_the_others(length, taps, seed):
    x, kernel, bias, before = draw(2, length, 3, taps, seed)
    starts = np.random.default_rng(seed).random((2, length)) < 0.3
    found = conv.causal_conv(x, kernel, bias, before=before, resets=starts)
    wanted = np.tile(bias, (2, length, 1))
    for b, t, back in np.ndindex(2, length, taps):
        if starts[b, max(t - back + 1, 0) : t + 1].any():
            continue  # another text
        one = x[b, t - back] if t >= back else before[b, t - back]
        wanted[b, t] += kernel[taps - 1 - back] * one
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_nothing_before_the_first_token_is_zeros():
    x, kernel, bias, before = draw(2, 6, 3, 4)
    np.testing.assert_array_equal(
        conv.causal_conv(x, kernel, bias), conv.causal_conv(x, kernel, bias, before=np.zeros_like(before))
    )


def test_what_is_remembered_are_the_last_tokens_that_count():
    x, _, _, before = draw(3, 5, 2, 4)
    np.testing.assert_array_equal(conv.last(x, before), x[:, -3:])
    found = conv.last(x, before, np.array([0, 2, 4]))
    np.testing.assert_array_equal(found[0], before[0])
    np.testing.assert_array_equal(found[1], np.concatenate([before[1, 2:], x[1, :2]]))
    np.testing.assert_array_equal(found[2], x[2, 1:4])
    np.testing.assert_array_equal(conv.last(x[:, :1], before)[:, :2], before[:, 1:])  # decoding


def test_wrong_shapes_are_refused():
    x, kernel, bias, _ = draw(2, 5, 3, 4)
    with pytest.raises(ValueError, match="kernel .K E. and bias .E., got .3, 4."):
        conv.causal_conv(x, kernel.T, bias)
