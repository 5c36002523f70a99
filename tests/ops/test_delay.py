"""Delays against what MusicGen's paper draws, and their inverses."""

import numpy as np
import pytest

from mmjax.ops import delay

CODES = np.arange(2 * 3 * 4).reshape(2, 3, 4)  # two rows of three frames of four codebooks
P = -7


def test_each_codebook_of_musicgen_comes_one_step_after_the_last():
    found = delay.delayed(CODES, delay.musicgen(4), P)[0].T
    np.testing.assert_array_equal(
        found, [[0, 4, 8, P, P, P], [P, 1, 5, 9, P, P], [P, P, 2, 6, 10, P], [P, P, P, 3, 7, 11]]
    )
    np.testing.assert_array_equal(delay.counts(3, delay.musicgen(4)).T, found != P)


def test_moshis_acoustic_codes_come_after_the_semantic_one():
    assert delay.moshi(8, streams=2, text=True) == (0, *(0, *[1] * 7) * 2)
    found = delay.delayed(CODES, delay.moshi(4, acoustic=2), P)[1].T
    np.testing.assert_array_equal(found[0], [12, 16, 20, P, P])
    np.testing.assert_array_equal(found[3], [P, P, 15, 19, 23])


@pytest.mark.parametrize(("frames", "delays"), [(1, [0, 3]), (4, [2, 0, 1])])
def test_undelayed_is_the_inverse(frames, delays):
    codes = np.random.default_rng(0).integers(0, 9, (2, frames, len(delays)))
    found = delay.delayed(codes, delays, P)
    assert found.shape == (2, delay.steps(frames, delays), len(delays))
    np.testing.assert_array_equal(np.asarray(found != P)[0], delay.counts(frames, delays))
    np.testing.assert_array_equal(delay.undelayed(found, delays), codes)


def test_flattened_codes_stand_frame_by_frame():
    found = delay.flattened(CODES % 5, 5)
    np.testing.assert_array_equal(found[0, :5], [0, 1 + 5, 2 + 10, 3 + 15, 4])
    np.testing.assert_array_equal(delay.unflattened(found, 4, 5), CODES % 5)
    np.testing.assert_array_equal(delay.unflattened(delay.flattened(CODES), 4), CODES)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"delays Q numbers.*\[2, 3, 4\] and delays \[0, 1\]"):
        delay.delayed(CODES, [0, 1], P)
    with pytest.raises(ValueError, match="none below 0"):
        delay.delayed(CODES, [0, -1, 0, 0], P)
    with pytest.raises(ValueError, match="delays up to 3 need more steps than that, got 3"):
        delay.undelayed(CODES, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="whole frames of 5 codebooks, got 12"):
        delay.unflattened(CODES.reshape(2, 12), 5)
