"""CLIP-blind pairs against loops over all pairs, whatever the blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.evals import clip_blind
from mmjax.evals.clip_blind import PUBLISHED, Thresholds

RNG = np.random.default_rng(0)
SEEN = (RNG.normal(size=(4, 5))[RNG.integers(0, 4, 23)] + 0.1 * RNG.normal(size=(23, 5))).astype(np.float32)
OTHER = RNG.normal(size=(23, 3)).astype(np.float32)


def cosine(x, i, j):
    a, b = x[i].astype(np.float64), x[j].astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def pairs_by_loop(seen, other, above, below):
    """(row, row, cosine, cosine), most blind first."""
    count = len(seen)
    every = [(i, j, cosine(seen, i, j), cosine(other, i, j)) for i in range(count) for j in range(i + 1, count)]
    return sorted([one for one in every if one[2] > above and one[3] < below], key=lambda one: one[3] - one[2])


@pytest.mark.parametrize("block", [1, 4, 23, 100])
def test_the_same_pairs_as_a_loop_finds_whatever_the_blocks(block):
    expected = pairs_by_loop(SEEN, OTHER, 0.95, 0.6)
    found = clip_blind.mine(3 * SEEN, OTHER, block=block)
    assert 10 < len(expected) < 23 * 11
    assert found.thresholds == PUBLISHED == Thresholds(0.95, 0.6)
    assert [tuple(row) for row in found.rows] == [one[:2] for one in expected]
    np.testing.assert_allclose(found.cosines, [one[2:] for one in expected], atol=1e-6)
    assert found.found == len(expected)
    assert found.compared == 23 * 22 // 2
    assert found.pictures == len({row for one in expected for row in one[:2]})


def test_both_bounds_are_strict():
    seen, other = np.array([[1.0, 0], [1, 0], [0, 1]]), np.array([[1.0, 0], [0, 1], [-1, 0]])
    assert clip_blind.mine(seen, other, Thresholds(0.99, 0.01)).found == 1
    assert clip_blind.mine(seen, other, Thresholds(1.0, 0.01)).found == 0
    assert clip_blind.mine(seen, other, Thresholds(0.99, 0.0)).found == 0


def test_a_limit_keeps_the_most_blind_and_counts_all():
    whole = clip_blind.mine(SEEN, OTHER)
    for block in (2, 7, 64):
        few = clip_blind.mine(SEEN, OTHER, limit=5, block=block)
        np.testing.assert_array_equal(few.rows, whole.rows[:5])
        assert few[3:6] == whole[3:6]


def test_equal_gaps_are_in_the_order_of_rows():
    seen, other = np.ones((5, 2)), np.eye(5)
    rows = [[i, j] for i in range(5) for j in range(i + 1, 5)]
    for block in (1, 2, 5):
        np.testing.assert_array_equal(clip_blind.mine(seen, other, block=block).rows, rows)
        np.testing.assert_array_equal(clip_blind.mine(seen, other, block=block, limit=3).rows, rows[:3])


def test_pairs_of_one_group_are_left_out_where_asked():
    groups = np.arange(23) % 3
    found = clip_blind.mine(SEEN, OTHER, groups=groups)
    expected = [one[:2] for one in pairs_by_loop(SEEN, OTHER, 0.95, 0.6) if groups[one[0]] != groups[one[1]]]
    assert [tuple(row) for row in found.rows] == expected
    assert found.compared == sum(groups[i] != groups[j] for i in range(23) for j in range(i))
    assert found.found < clip_blind.mine(SEEN, OTHER).found


@pytest.mark.parametrize("block", [3, 64])
@pytest.mark.parametrize("shares", [(0.99, 0.5), (0.5, 0.01), (1.0, 1.0), (1e-9, 0.3)])
def test_quantiles_are_cosines_that_occur(block, shares):
    # The same rounding on both sides, or the last bit would differ.
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (SEEN, OTHER)]
    upper = np.triu_indices(23, 1)
    cosines = [np.asarray(jnp.einsum("nd,md->nm", x, x, precision="highest"))[upper] for x in unit]
    expected = [np.quantile(x, share, method="inverted_cdf") for x, share in zip(cosines, shares, strict=True)]
    found = clip_blind.quantiles(SEEN, OTHER, *shares, block=block)
    np.testing.assert_allclose([found.above, found.below], expected, atol=2e-7)
    assert all(np.abs(x - value).min() < 2e-7 for x, value in zip(cosines, (found.above, found.below), strict=True))


def test_quantiles_of_equal_and_of_negative_cosines():
    seen, other = np.ones((4, 3)), np.array([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])  # 4 pairs at -1, 2 at 1
    assert clip_blind.quantiles(seen, other, 0.9, 0.6) == Thresholds(pytest.approx(1), -1)
    assert clip_blind.quantiles(seen, other, 0.9, 0.7).below == 1
    some = clip_blind.quantiles(seen, other, 0.9, 0.7, groups=np.array([0, 0, 1, 1]))
    assert some.below == 1


def test_bits_keep_the_order_of_numbers():
    numbers = np.array([-1.0, -0.5, -1e-30, 0.0, 1e-30, 0.25, 1.0], np.float32)
    bits = clip_blind._ordered(numbers)
    assert (np.diff(bits.astype(np.int64)) > 0).all()
    assert [clip_blind._cosine(int(one)) for one in bits] == numbers.tolist()
    assert clip_blind._ordered(np.float32([-0.0])) == bits[3]


def test_what_cannot_be_compared_is_said():
    bad = SEEN.copy()
    bad[[3, 7]] = 0
    with pytest.raises(ValueError, match=r"other: 2 of 23 rows are zero or not finite .* the first is row 3"):
        clip_blind.mine(SEEN, bad)
    with pytest.raises(ValueError, match=r"same N pictures, at least two, got \[23, 5\] and \[22, 3\]"):
        clip_blind.mine(SEEN, OTHER[:22])
    with pytest.raises(ValueError, match=r"groups must be \[23\]"):
        clip_blind.mine(SEEN, OTHER, groups=np.zeros(3))
    with pytest.raises(ValueError, match="limit must be at least 1"):
        clip_blind.mine(SEEN, OTHER, limit=0)
    with pytest.raises(ValueError, match=r"below must be a share of the pairs, above 0 and at most 1, got 0"):
        clip_blind.quantiles(SEEN, OTHER, 0.9, 0)
    with pytest.raises(ValueError, match="no pair is left"):
        clip_blind.quantiles(SEEN, OTHER, 0.9, 0.5, groups=np.zeros(23))


def test_bfloat16_rows_are_compared_in_float32():
    rows = jnp.asarray(SEEN, jnp.bfloat16)
    found = clip_blind.mine(rows, OTHER)
    expected = pairs_by_loop(np.asarray(rows, np.float32), OTHER, 0.95, 0.6)
    np.testing.assert_allclose(found.cosines, [one[2:] for one in expected], atol=1e-6)


def test_it_says_what_was_taken_and_shows_the_pairs():
    found = clip_blind.mine(SEEN, OTHER, vectors=("CLIP, embedding", "DINO, class token"))
    text = str(found)
    assert "of 253 pairs" in text
    assert "above 0.950 in CLIP, embedding and below 0.600 in DINO, class token" in text
    images = RNG.integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
    sheet = clip_blind.gallery(found, images)
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] > 300
    none = clip_blind.mine(SEEN, OTHER, Thresholds(1.5, 0))
    assert none.found == none.pictures == 0
    assert clip_blind.gallery(none, images).shape[0] < 60


class Halves(nn.Module):
    """An encoder whose embedding is the mean of the left half and of the right half."""

    def encode_image(self, images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32).mean((1, 3))
        return jnp.stack([x[:, :4].mean(1), x[:, 4:].mean(1)], -1)


def test_vectors_of_a_model():
    images = RNG.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    vectors = clip_blind.vectors_of(Halves(), {}, images)
    np.testing.assert_allclose(vectors[1, 0], images[1, :, :4].mean(), rtol=1e-5)
