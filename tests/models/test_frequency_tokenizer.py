"""Frequencies as tokens, the tokenizer: against a plain account (stored, tests/goldens/make_frequency.py), then what it
promises."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_names import close, group

from mmjax.models import frequency_tokenizer as frequency
from mmjax.models.frequency_tokenizer import TokenizerConfig
from mmjax.ops import fourier

ORDERS = {
    "low_to_high": frequency.low_to_high, "high_to_low": frequency.high_to_low, "raster": frequency.raster,
    "shuffled": partial(frequency.shuffled, seed=2),
}  # fmt: skip
CONFIGS = {
    "fft": TokenizerConfig((7, 6), 3, edges=(0.5, 1.5, 3.2), group=3, step=0.7, clip=3, floor=0.6),
    "dct": TokenizerConfig((6, 9), 3, fourier.DCT, 3, edges=(0.5, 1.2), group=4, step=0.4, clip=3),
}


def pictures(count: int, *size: int) -> np.ndarray:
    """uint8 [count H W 3] that are smooth, as pictures are."""
    x = np.random.default_rng(0).normal(size=(count, *size, 3)).cumsum(1).cumsum(2)
    return np.clip(128 + 20 * x, 0, 255).astype(np.uint8)


def jitted(function, c: TokenizerConfig):
    return jax.jit(partial(function, c))


@pytest.fixture(scope="module", params=CONFIGS)
def case(request):
    found = np.load(Path(__file__).parents[1] / "goldens" / "frequency.npz")
    return request.param, CONFIGS[request.param], group(found, request.param)


def test_statistics_tokens_and_pictures_equal_the_plain_account(case):
    name, c, golden = case
    statistics = frequency.fit(c, golden["images"], rows=3)  # in parts that are not equal
    for key, x in statistics.items():
        close(key, x, golden[f"statistics/{key}"], relative=1e-6)

    @jax.jit
    def run(statistics, images):
        values = frequency.values(c, statistics, images)
        grain = frequency.grain(c, statistics)
        codes = frequency.rounded(values, grain, c.clip)
        return values, codes, *(frequency.pictures(c, statistics, x) for x in (codes * grain, values))

    values, codes, rounded, back = run(statistics, golden["images"])
    close("values", values, golden["values"], relative=1e-5)
    close("same", back, golden["images"] / 127.5 - 1, relative=1e-5)
    if name == "fft":
        np.testing.assert_array_equal(codes, golden["tokens"])
        close("rounded", rounded, golden["rounded"], relative=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_coefficient_is_in_one_token(name, order):
    c = TokenizerConfig(**{**vars_of(CONFIGS[name]), "order": ORDERS[order]})
    numbers = c.layout.numbers
    np.testing.assert_array_equal(np.sort(numbers[numbers >= 0]), np.arange(np.prod(c.size)))
    assert sum(c.layout.sizes) == c.tokens == len(numbers)
    assert (c.layout.ends[-1], len(c.layout.ends)) == (c.tokens, len(c.layout.sizes) + 1)
    bands = [set(c.bands[x[x >= 0] % c.block_numbers]) for x in numbers]
    assert all(len(x) == 1 for x in bands)  # a token is of one band of frequencies
    of_places = np.repeat(np.arange(len(c.layout.sizes)), c.layout.sizes)
    if order == "raster":
        np.testing.assert_array_equal(of_places, numbers[:, 0] // c.block_numbers)
    else:
        in_order = [int(next(iter(x))) for x in bands]
        assert len({(place, band) for place, band in zip(of_places, in_order, strict=True)}) == len(c.edges) + 1
        rising = in_order == sorted(in_order)
        assert rising == (order == "low_to_high")
        assert (in_order == sorted(in_order, reverse=True)) == (order == "high_to_low")
    kinds = {kind: {tuple(x % c.block_numbers) for x in numbers[c.layout.kinds == kind]} for kind in c.layout.kinds}
    assert all(len(x) == 1 for x in kinds.values())


def vars_of(c: TokenizerConfig) -> dict:
    return {name: getattr(c, name) for name in c.__dataclass_fields__}


def test_the_first_bands_are_a_picture_whose_error_is_the_energy_of_the_others():
    c = TokenizerConfig.tiny(order=frequency.high_to_low)
    images = pictures(5, 8, 8)
    statistics = frequency.fit(c, images)
    coefficients, *prefixes = jax.jit(
        lambda values: (
            frequency.coefficients(c, images),
            *(frequency.pictures(c, statistics, values, known) for known in range(5)),
        )
    )(jitted(frequency.values, c)(statistics, images))
    x, energy = images / 127.5 - 1, np.square(coefficients)[:, 0]  # [B n C]
    for known, decoded in enumerate(prefixes):
        missing = c.bands < len(c.edges) + 1 - known
        np.testing.assert_allclose(
            np.square(x - decoded).sum((1, 2, 3)), energy[:, missing].sum((1, 2)), rtol=1e-4, atol=1e-5
        )


def test_the_lowest_band_alone_is_one_colour():
    c = TokenizerConfig.tiny()
    images = pictures(5, 8, 8)
    statistics = frequency.fit(c, images)
    found = jax.jit(lambda s: frequency.pictures(c, s, frequency.values(c, s, images), 1))(statistics)
    wanted = (images / 127.5 - 1).mean((1, 2), keepdims=True)
    np.testing.assert_allclose(found, np.broadcast_to(wanted, images.shape), atol=1e-6)


def test_codes_are_off_by_half_a_step_at_most_and_none_of_training_is_clipped():
    c = TokenizerConfig.tiny(step=(0.02, 0.01, 0.02, 0.01), clip=300)
    images = pictures(40, 8, 8)
    statistics = frequency.fit(c, images)
    values, grain = jitted(frequency.values, c)(statistics, images), jitted(frequency.grain, c)(statistics)
    codes = frequency.rounded(values, grain, c.clip)
    assert np.abs(codes).max() == c.clip  # the farthest value just fits
    assert (np.abs(codes * grain - values) <= grain * 0.5001).all()
    assert (frequency.rounded(values * 100, grain, c.clip) == c.clip).any()
    decoded = jitted(frequency.pictures, c)(statistics, codes * grain)
    error = np.square(decoded - (images / 127.5 - 1)).mean()
    assert error == pytest.approx(np.square(statistics["step"]).mean() / 12, rel=0.05)
    first = c.bands == 0
    assert statistics["step"][first] > 0.02  # of the mean, which Q steps of 0.02 would not reach
    assert statistics["step"][c.bands == 3].max() == pytest.approx(0.01)


def test_values_of_training_have_mean_0_and_deviation_1():
    c = TokenizerConfig.tiny(basis=fourier.DCT, block=4, order=frequency.raster)
    images = pictures(64, 8, 8)
    statistics = frequency.fit(c, images, rows=24)
    values = np.asarray(jitted(frequency.values, c)(statistics, images))
    by_kind = np.stack([values[:, c.layout.kinds == kind].reshape(-1, c.features) for kind in range(len(c.groups))])
    live = np.stack([c.live[c.layout.kinds == kind][0] for kind in range(len(c.groups))])
    np.testing.assert_allclose(by_kind.mean(1), 0, atol=1e-4)
    np.testing.assert_allclose(by_kind.std(1)[live], 1, atol=1e-4)
    assert not by_kind.transpose(0, 2, 1)[~live].any()


def test_sizes_for_32_pixels():
    for c, sizes in (
        (TokenizerConfig(), (1, 1, 2, 6, 14, 31, 53, 23)),
        (frequency.cosines(), (1, 1, 2, 7, 15, 31, 54, 20)),
        (frequency.cosine_blocks(), (16,) * 8),
        (frequency.raster_blocks(), (8,) * 16),
    ):
        assert (c.layout.sizes, c.features) == (sizes, 24)
        assert c.live.sum() == 32 * 32 * 3


def test_what_cannot_be_is_told():
    c = TokenizerConfig.tiny()
    images = pictures(3, 8, 8) / np.float32(127.5) - 1
    with pytest.raises(ValueError, match=r"images must be \[B 8 8 3\], got \[3, 8, 4, 3\]"):
        frequency.fit(c, images[:, :, :4])
    images[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"images\[2\] holds NaN"):
        frequency.fit(c, images, rows=2)
    with pytest.raises(ValueError, match="need images, got none"):
        frequency.fit(c, images[:0])
    with pytest.raises(ValueError, match="multiples of block"):
        TokenizerConfig.tiny(block=3)
    with pytest.raises(ValueError, match=r"without a coefficient; they hold \[1, 0, 63\]"):
        TokenizerConfig.tiny(edges=(0.5, 0.6))
    with pytest.raises(ValueError, match="one for each of 4 bands"):
        TokenizerConfig.tiny(step=(1.0, 2.0))
    with pytest.raises(ValueError, match="bytes are read as RGB only"):
        frequency.coefficients(TokenizerConfig.tiny(channels=1), jnp.zeros((1, 8, 8, 1), jnp.uint8))
    with pytest.raises(ValueError, match='"statistics" hold a deviation that is NaN'):
        frequency.checked({"mean": np.zeros(1), "deviation": np.zeros(1)})
