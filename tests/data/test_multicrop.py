"""Each operation against Pillow or colorsys; the views as published."""

import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from mmjax.data import multicrop
from mmjax.data.multicrop import MultiCrop

RNG = np.random.default_rng(0)
# Smooth, as pictures are, with values at both ends.
Y, X = np.mgrid[:40, :40] / 39
PICTURE = (255 * np.stack([X, 0.5 + 0.5 * np.sin(9 * Y), (X + Y) / 2], -1)).round().astype(np.uint8)


def floats(image):  # [h w 3] uint8 -> [1 3 h w]
    return image.transpose(2, 0, 1)[None].astype(np.float32) / 255


def pixels(x):  # [1 3 P] or [1 3 h w] -> [P 3] in [0, 255]
    return 255 * x.reshape(3, -1).T


def as_bytes(image):
    return np.asarray(image, np.float32).reshape(-1, 3)


def still(count=1, side=40, **fields):
    """Draws of one view that change nothing, but for `fields`."""
    crop = np.tile([0, 0, side, side], (count, 1))
    off, order = np.zeros(count, bool), np.tile(np.arange(4), (count, 1))
    plain = multicrop.Draw(crop, off, off, order, np.tile([1, 1, 1, 0], (count, 1)), off, np.zeros(count), off)
    return plain._replace(**{name: np.asarray(value) for name, value in fields.items()})


@pytest.mark.parametrize("crop", [(0, 0, 40, 40), (3, 11, 30, 22), (20, 5, 7, 9)])
@pytest.mark.parametrize("size", [13, 32, 57])
def test_a_resized_crop_is_pillows_bicubic(crop, size):
    left, top, width, height = crop
    piece = Image.fromarray(PICTURE).crop((left, top, left + width, top + height))
    wanted = as_bytes(piece.resize((size, size), Image.Resampling.BICUBIC))
    ours = multicrop.resized_crop(floats(PICTURE), np.array([crop]), np.array([False]), size)
    assert np.abs(pixels(ours) - wanted).max() < 1.2  # Pillow rounds to bytes after each axis
    mirrored = multicrop.resized_crop(floats(PICTURE), np.array([crop]), np.array([True]), size)
    np.testing.assert_array_equal(mirrored, ours[..., ::-1])


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (multicrop.brighten, ImageEnhance.Brightness),
        (multicrop.contrast, ImageEnhance.Contrast),
        (multicrop.saturate, ImageEnhance.Color),
    ],
)
def test_jitter_is_pillows(ours, theirs, factor):
    wanted = as_bytes(theirs(Image.fromarray(PICTURE)).enhance(factor))
    found = ours(floats(PICTURE).reshape(1, 3, -1), np.full((1, 1, 1), factor, np.float32))
    assert np.abs(pixels(found) - wanted).max() <= 1.5  # Pillow rounds greys and means to bytes


@pytest.mark.parametrize("turns", [-0.1, 0.0, 0.07, 0.5])
def test_hue_turns_as_in_hsv(turns):
    colours = np.concatenate([RNG.random((40, 3)), np.eye(3), np.ones((1, 3)), np.zeros((1, 3)), [[0.5, 0.5, 0.2]]])
    hsv = [colorsys.rgb_to_hsv(*colour) for colour in colours]
    wanted = [colorsys.hsv_to_rgb((h + turns) % 1, s, v) for h, s, v in hsv]
    found = multicrop.turn_hue(colours.T[None].astype(np.float32), np.full((1, 1, 1), turns, np.float32))
    np.testing.assert_allclose(found[0].T, wanted, atol=2e-6)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.0])
def test_blur_spreads_an_edge_as_a_gaussian_does(sigma):
    impulse = np.zeros((1, 3, 31, 31), np.float32)
    impulse[:, :, 15, 15] = 1
    found = multicrop.blur(impulse, np.array([sigma], np.float32), 12)[0, 0]
    offsets = np.arange(31) - 15
    line = np.exp(-0.5 * (offsets / sigma) ** 2)
    np.testing.assert_allclose(found, np.outer(line, line) / line.sum() ** 2, atol=1e-4)
    ours = multicrop.blur(floats(PICTURE), np.array([sigma], np.float32), 12)
    wanted = as_bytes(Image.fromarray(PICTURE).filter(ImageFilter.GaussianBlur(sigma)))
    assert np.abs(pixels(ours) - wanted).mean() < 1.0  # Pillow's is three box blurs


def test_grey_and_solarised_as_pillow_does():
    picture = PICTURE[None]
    source = picture.transpose(0, 3, 1, 2).astype(np.float32) / 255
    grey = multicrop.view(source, still(grey=[True]), 40, 1)[0]
    wanted = np.asarray(Image.fromarray(PICTURE).convert("L"), int)
    assert np.abs(grey - wanted[..., None]).max() <= 1
    solarised = multicrop.view(source, still(solarise=[True]), 40, 1)[0]
    np.testing.assert_array_equal(solarised, ImageOps.solarize(Image.fromarray(PICTURE)))
    np.testing.assert_array_equal(multicrop.view(source, still(), 40, 1)[0], PICTURE)


def test_each_picture_is_jittered_in_its_own_order():
    source = np.repeat(floats(PICTURE), 3, 0)
    amount = np.tile([1.4, 1.4, 0.8, 0.1], (3, 1)).astype(np.float32)
    order = np.array([[0, 1, 2, 3], [3, 1, 0, 2], [0, 1, 2, 3]])
    draws = still(3, jitter=[True, True, False], order=order, amount=amount)
    found = multicrop.view(source, draws, 40, 1)
    for row in (0, 1):
        x = floats(PICTURE).reshape(1, 3, -1)
        for number in order[row]:
            x = multicrop.OPERATIONS[number](x, amount[row, number].reshape(1, 1, 1))
        np.testing.assert_allclose(found[row].reshape(-1, 3), pixels(x), atol=0.51)
    assert (found[0] != found[1]).any()
    np.testing.assert_array_equal(found[2], PICTURE)


def test_views_are_drawn_as_published():
    """facebookresearch/dino, main_dino.py: DataAugmentationDINO; shares of 4,000 draws, five deviations wide."""
    draws = multicrop.draw(MultiCrop(), 4000, 256, np.random.default_rng(0))
    assert draws.crop.shape == (4000, 10, 4)
    share = lambda x: x.reshape(4000, 10).mean(0)  # noqa: E731
    np.testing.assert_allclose(share(draws.sigma > 0), [1.0, 0.1, *[0.5] * 8], atol=0.04)
    np.testing.assert_allclose(share(draws.solarise), [0, 0.2, *[0] * 8], atol=0.04)
    np.testing.assert_allclose(share(draws.flip), 0.5, atol=0.04)
    np.testing.assert_allclose(share(draws.jitter), 0.8, atol=0.04)
    np.testing.assert_allclose(share(draws.grey), 0.2, atol=0.04)
    blurred = draws.sigma[draws.sigma > 0]
    assert (blurred.min() >= 0.1, blurred.max() <= 2.0, abs(blurred.mean() - 1.05) < 0.02) == (True, True, True)
    low, high = draws.amount.min((0, 1)), draws.amount.max((0, 1))
    np.testing.assert_allclose(low, [0.6, 0.6, 0.8, -0.1], atol=1e-3)
    np.testing.assert_allclose(high, [1.4, 1.4, 1.2, 0.1], atol=1e-3)
    assert len(np.unique(draws.order.reshape(-1, 4), axis=0)) == 24

    left, top, width, height = np.moveaxis(draws.crop, -1, 0)
    assert (np.minimum(left, top).min(), (left + width).max() <= 256, (top + height).max() <= 256) == (0, True, True)
    area = width * height / 256**2
    for views, (low, high) in ((slice(0, 2), (0.4, 1.0)), (slice(2, None), (0.05, 0.4))):
        assert low - 0.01 < area[:, views].min() < low + 0.02
        assert high - 0.05 < area[:, views].max() <= high + 0.01
    ratio = (width / height)[:, 2:]
    assert (abs(ratio.min() - 3 / 4), abs(ratio.max() - 4 / 3)) < (0.05, 0.05)


def test_dinov2s_views_have_other_scales_and_the_same_colours():
    crops = multicrop.dinov2(local_count=2)
    assert (crops.global_scale, crops.local_scale, crops.local_size) == ((0.32, 1.0), (0.05, 0.32), 98)
    assert (crops.jitter, crops.grey, crops.solarise, crops.local_count) == (0.8, 0.2, 0.2, 2)


def test_dinov2s_blur_is_torchvisions_of_nine_pixels_and_never_of_the_first_view():
    """facebookresearch/dinov2, data/transforms.py: GaussianBlur hands 1 - p to RandomApply, which wants p."""
    crops = multicrop.dinov2()
    assert [crops.reach(*sizes) for sizes in zip((224, 98), crops.published, strict=True)] == [4, 4]
    assert [MultiCrop().reach(*sizes) for sizes in zip((224, 96), MultiCrop().published, strict=True)] == [8, 8]
    sigma = multicrop.draw(crops, 1000, 256, np.random.default_rng(0)).sigma
    np.testing.assert_allclose((sigma > 0).mean(0), [0, 0.9, *[0.5] * 8], atol=0.08)
    assert (sigma[sigma > 0].min() >= 0.1, 1.99 < sigma[:, 1].max() <= 2, 1.99 < sigma[:, 2:].max() <= 2) == (True,) * 3
    # torchvision's kernel, applied to the picture mirrored about its border pixels
    line = np.exp(-0.5 * (np.linspace(-4, 4, 9) / 1.5) ** 2)
    padded = np.pad(floats(PICTURE), [(0, 0), (0, 0), (4, 4), (4, 4)], mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (9, 9), (2, 3))
    wanted = np.einsum("bchwij,i,j->bchw", windows, line, line) / line.sum() ** 2
    found = multicrop.blur(floats(PICTURE), np.array([1.5], np.float32), 4, crops.edges)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


def test_a_crop_that_never_fits_is_the_whole_picture():
    class Ends:
        """Every draw is the upper end: twice the area."""

        uniform = staticmethod(lambda low, high, size: np.broadcast_to(high, size))
        random = staticmethod(lambda size: np.full(size, 0.999))

    crop = multicrop.crops(np.array([[2.0], [2.0]]), (3, 1), 40, Ends)
    np.testing.assert_array_equal(crop, np.tile([0, 0, 40, 40], (3, 1, 1)))


def test_small_views_are_blurred_in_proportion():
    config = MultiCrop(global_size=56, local_size=48, blur=(1.0, 1.0, 1.0))
    sigma = multicrop.draw(config, 500, 64, np.random.default_rng(0)).sigma
    np.testing.assert_allclose((sigma[:, :2].max(), sigma[:, 2:].max()), (2 / 4, 2 / 2), rtol=0.01)


def test_rows_do_not_depend_on_who_renders_them():
    config = MultiCrop(global_size=16, local_size=8, local_count=3)
    pictures = RNG.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    draws = multicrop.draw(config, 6, 32, np.random.default_rng(1))
    whole = multicrop.render(pictures, draws, config)
    assert {name: x.shape for name, x in whole.items()} == {
        "global_crops": (6, 2, 16, 16, 3),
        "local_crops": (6, 3, 8, 8, 3),
    }
    rows = slice(2, 5)
    part = multicrop.render(pictures[rows], multicrop.take(draws, rows), config)
    for name, x in whole.items():
        np.testing.assert_array_equal(part[name], x[rows])
    assert (whole["global_crops"][:, 0] != whole["global_crops"][:, 1]).any((1, 2, 3)).all()


def test_without_local_views_there_are_none():
    config = MultiCrop(global_size=16, local_count=0)
    draws = multicrop.draw(config, 2, 32, RNG)
    assert set(multicrop.render(np.zeros((2, 32, 32, 3), np.uint8), draws, config)) == {"global_crops"}
