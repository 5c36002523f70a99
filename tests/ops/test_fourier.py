"""Orthonormal transforms against scipy.fft and NumPy, and what makes their coefficients a fair account of a picture."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from mmjax.ops import fourier

SIZES = [(8, 8), (7, 9), (8, 9), (7, 8), (1, 5)]
BASES = {"fft": fourier.FFT, "dct": fourier.DCT}


def images(*shape: int, dtype=np.float64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@functools.cache
def matrices(name: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Both [N N] float64: coefficients of pixels, and back."""
    basis, count = BASES[name], height * width

    @jax.jit
    def both(units):
        back = basis.inverse(units[..., None], height, width)
        return basis.forward(units.reshape(count, height, width, 1))[..., 0], back.reshape(count, count)

    with jax.enable_x64(True):
        forward, inverse = both(np.eye(count))
    assert forward.dtype == inverse.dtype == np.float64
    return np.asarray(forward).T, np.asarray(inverse).T


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BASES)
def test_transforms_are_orthogonal_maps_of_n_numbers_to_n_numbers(name, size):
    forward, inverse = matrices(name, *size)
    np.testing.assert_allclose(forward @ forward.T, np.eye(size[0] * size[1]), atol=1e-14)
    np.testing.assert_allclose(inverse, forward.T, atol=1e-14)


@pytest.mark.parametrize("name", BASES)
def test_in_float32_a_picture_comes_back_and_whole_bytes_are_read(name):
    basis, x = BASES[name], images(2, 32, 24, 3, dtype=np.float32)
    c, back = jax.jit(lambda x: (c := basis.forward(x), basis.inverse(c, 32, 24)))(x)
    np.testing.assert_allclose(back, x, atol=3e-6)
    np.testing.assert_allclose(np.sum(c**2), np.sum(x**2), rtol=1e-6)
    for dtype in (jnp.uint8, jnp.bfloat16):
        assert jax.eval_shape(basis.forward, jnp.zeros((1, 4, 4, 3), dtype)).dtype == np.float32


@pytest.mark.parametrize("size", SIZES)
def test_cosines_equal_scipy(size):
    x = images(*size)
    forward, _ = matrices("dct", *size)
    np.testing.assert_allclose(forward @ x.ravel(), scipy.fft.dctn(x, norm="ortho").ravel(), atol=1e-13)


def test_leading_axes_and_channels_stay_what_they_are():
    x = images(2, 3, 7, 4, 2)
    full = scipy.fft.dctn(x, axes=(2, 3), norm="ortho").reshape(2, 3, 28, 2)
    np.testing.assert_allclose(fourier.dct(x), full, atol=2e-6)
    np.testing.assert_allclose(fourier.inverse_dct(full, 7, 4), x, atol=2e-6)
    alone = np.einsum("nm,bkmc->bknc", matrices("fft", 7, 4)[0], x.reshape(2, 3, 28, 2))
    np.testing.assert_allclose(fourier.fft(x), alone, atol=2e-6)


@pytest.mark.parametrize("size", SIZES)
def test_fourier_coefficients_are_those_of_scipy_once_each(size):
    """Of each place the numbers are Re and Im of scipy's full transform there, times the root of 2 unless real."""
    x = images(*size)
    full = scipy.fft.fft2(x, norm="ortho")
    c, places = matrices("fft", *size)[0] @ x.ravel(), fourier.fft_places(*size)
    assert len(c) == len(places) == size[0] * size[1]
    seen = {}
    for value, (row, column) in zip(c, places, strict=True):
        seen.setdefault((row % size[0], column), []).append(value)
    mirrors = {(-row % size[0], -column % size[1]) for row, column in seen}
    assert set(seen) | mirrors == {(i, j) for i in range(size[0]) for j in range(size[1])}
    for (row, column), found in seen.items():
        value, alone = full[row, column], (-row % size[0], -column % size[1]) == (row, column)
        wanted = [value.real] if alone else [np.sqrt(2) * value.real, np.sqrt(2) * value.imag]
        np.testing.assert_allclose(found, wanted, atol=1e-14)
        assert alone or (-row % size[0], -column % size[1]) not in seen


def test_the_array_of_rfft2_itself_is_no_such_account():
    """Why packing exists: its inverse averages what stands twice, and ignores what should be real."""
    half = np.fft.rfft2(images(8, 8), norm="ortho")
    other = half.copy()
    other[1, 0] += 1
    back = np.fft.rfft2(np.fft.irfft2(other, (8, 8), norm="ortho"), norm="ortho") - half
    np.testing.assert_allclose((back[1, 0], back[7, 0]), 0.5, atol=1e-12)
    other = half.copy()
    other[0, 0] += 1j
    np.testing.assert_allclose(np.fft.irfft2(other, (8, 8), norm="ortho"), np.fft.irfft2(half, (8, 8), norm="ortho"))


def test_rings_hold_as_many_numbers_as_counted_by_hand():
    rings = {8: [1, 8, 12, 16, 22, 4, 1], 16: [1, 8, 12, 16, 32, 28, 40, 40, 38, 28, 8, 5], 32: [1, 8, 12, 16, 32, 28]}
    for size, counts in rings.items():
        radius = fourier.radius(fourier.fft_places(size, size), size, size)
        bands = fourier.band(radius, np.arange(size) + 0.5)
        np.testing.assert_array_equal(bands, np.rint(radius))
        found = np.bincount(bands)
        np.testing.assert_array_equal(found[: len(counts)], counts)
        assert found.sum() == size**2
    assert len(found) == 24


def test_shells_of_cosines_are_the_lowest_squares():
    bands = fourier.band(fourier.shell(fourier.dct_places(6, 6), 6, 6), np.arange(5) + 0.5)
    np.testing.assert_array_equal(np.bincount(bands), 2 * np.arange(6) + 1)
    low = np.where(bands[:, None] <= 2, fourier.dct(images(6, 6, 1)), 0).reshape(6, 6)
    assert not low[3:].any()
    assert not low[:, 3:].any()
    assert low[:3, :3].all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BASES)
def test_what_lower_bands_leave_is_the_energy_of_the_higher_ones(name, size):
    x, places, (forward, inverse) = images(*size).ravel(), BASES[name].places(*size), matrices(name, *size)
    bands, c = fourier.band(fourier.radius(places, *size), (0.5, 1.5, 3)), forward @ x
    energy = [np.sum(c[bands == b] ** 2) for b in range(4)]
    assert np.isclose(sum(energy), np.sum(x**2))
    for b in range(4):
        low = inverse @ np.where(bands <= b, c, 0)
        np.testing.assert_allclose(np.sum((x - low) ** 2), sum(energy[b + 1 :]), atol=1e-12)
    np.testing.assert_array_equal(bands == 0, (places == 0).all(-1))
    assert (bands == 0).sum() == 1  # the mean, and nothing else
    np.testing.assert_allclose(inverse @ np.where(bands == 0, c, 0), x.mean(), atol=1e-14)


def test_the_order_is_by_band_radius_and_angle_and_keeps_both_parts_together():
    places = fourier.fft_places(8, 6)
    radius = fourier.radius(places, 8, 6)
    order = fourier.low_to_high(places, 8, 6)
    np.testing.assert_array_equal(np.sort(order), np.arange(48))
    assert (np.diff(radius[order]) >= -1e-12).all()
    pairs = [tuple(x) for x in places[order]]
    assert all(pairs.index(x) >= i - 1 for i, x in enumerate(pairs))  # the second part follows the first
    bands = np.where(radius > 3, 0, 1)
    first = fourier.low_to_high(places, 8, 6, bands)
    assert (np.diff(bands[first]) >= 0).all()
    np.testing.assert_array_equal(first[bands[first] == 1], order[bands[order] == 1])
    np.testing.assert_array_equal(fourier.rank(places, 8, 6)[order], np.arange(48))


def test_the_longer_side_sets_the_scale():
    """A picture of 4 x 8 pixels: a wave over its width is half as high as one over its height."""
    places = np.array([[0, 1], [1, 0]])
    np.testing.assert_allclose(fourier.radius(places, 4, 8), [1, 2])
    np.testing.assert_allclose(fourier.radius(places, 8, 4), [2, 1])
    np.testing.assert_allclose(fourier.shell(np.array([[-1, 1]]), 4, 8), 2)


def test_colours_turn_and_come_back():
    x = images(5, 3, dtype=np.float32)
    turned = fourier.opponent(x)
    np.testing.assert_allclose(fourier.inverse_opponent(turned), x, atol=1e-6)
    np.testing.assert_allclose(np.sum(turned**2, -1), np.sum(x**2, -1), rtol=1e-5)
    np.testing.assert_allclose(fourier.opponent(jnp.ones(3)), [np.sqrt(3), 0, 0], atol=1e-6)


def test_wrong_shapes_and_edges_are_told():
    with pytest.raises(ValueError, match=r"takes a picture \[... H W C\], got \[4, 4\]"):
        fourier.dct(jnp.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"coefficients \[... 16 C\], got \[2, 15, 3\]"):
        fourier.inverse_fft(jnp.zeros((2, 15, 3)), 4, 4)
    with pytest.raises(ValueError, match="must be numbers that rise"):
        fourier.band(np.zeros(3), (1.5, 0.5))
