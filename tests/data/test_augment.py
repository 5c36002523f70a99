"""Each part of the augmentation against arithmetic that can be done by hand or by PIL."""

import colorsys

import numpy as np
import pytest
from PIL import Image

from mmjax.data import augment


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def cutouts(rng):  # an opaque, smoothly coloured disc on an invisible ground of garbage colours
    y, x = np.mgrid[:64, :64] / 63
    picture = np.stack([x, y, (x + y) / 2, (np.hypot(x - 0.5, y - 0.5) < 0.4)], -1)
    garbage = rng.random((6, 64, 64, 4))
    return (255 * np.where(picture[..., 3:] > 0, picture, garbage * [1, 1, 1, 0])).astype(np.uint8)


def still(count, **fields):
    return augment.still(count)._replace(**{k: np.asarray(v, np.float32) for k, v in fields.items()})


def centre_of(images):
    """Centre of what differs from white, as (x, y) in [0, 1]."""
    ink = 255.0 - images.min(-1)
    grid = (np.arange(images.shape[1]) + 0.5) / images.shape[1]
    return np.stack([np.einsum("byx,x->b", ink, grid), np.einsum("byx,y->b", ink, grid)], 1) / ink.sum((1, 2))[:, None]


def test_standing_still_at_half_size_is_the_mean_of_four_pixels(cutouts):
    alpha = cutouts[..., 3:] / 255.0
    white = cutouts[..., :3] * alpha + 255 * (1 - alpha)
    mean = white.reshape(6, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(augment.plain(cutouts, 32) - mean).max() <= 0.51


def test_standing_still_at_full_size_is_the_picture(cutouts):
    photographs = cutouts[..., :3]
    np.testing.assert_array_equal(augment.plain(photographs, 64), photographs)


@pytest.mark.parametrize("background", [0, 128, 255])
def test_invisible_pixels_show_the_background_only(cutouts, background):
    images = augment.plain(cutouts, 32, background)
    assert (images[:, 0] == background).all()


def test_no_colour_leaks_from_invisible_pixels(rng):
    red = np.zeros((1, 64, 64, 4), np.uint8)
    red[..., 1] = 255  # green, but invisible
    red[:, 20:43, 20:43] = [255, 0, 0, 255]
    turned = augment.render(red, still(1, angle=[0.3], paints=np.zeros((1, 2, 3))), 32)
    assert turned[..., 0].max() == 255
    assert turned[..., 1].max() == 0


def test_rotation_is_counter_clockwise_as_pil_turns(rng):
    picture = np.zeros((1, 64, 64, 4), np.uint8)
    picture[0, 10:20, 28:50] = [200, 50, 90, 255]
    pil = Image.fromarray(picture[0]).rotate(20, resample=Image.Resampling.BILINEAR)
    ours = augment.sample(augment.framed(picture), *augment.source_points(still(1, angle=[np.deg2rad(20)]), 64, 64))[1]
    difference = np.abs(255 * ours.reshape(64, 64) - np.asarray(pil)[..., 3])
    assert difference.mean() < 0.5  # PIL works in fixed point, so single pixels of the edge differ


def test_shift_moves_right_and_down_by_image_sides(cutouts):
    images = augment.render(cutouts, still(6, shift=np.tile([0.05, -0.08], (6, 1))), 64)
    moved = centre_of(images) - centre_of(augment.plain(cutouts, 64))
    np.testing.assert_allclose(moved, np.tile([0.05, -0.08], (6, 1)), atol=2e-3)


def test_scale_scales_the_area(cutouts):
    def area(images):
        return (images.min(-1) < 250).mean((1, 2))

    ratio = area(augment.render(cutouts, still(6, scale=[0.5] * 6), 64)) / area(augment.plain(cutouts, 64))
    np.testing.assert_allclose(ratio, 0.25, rtol=0.1)


def test_only_pictures_that_may_be_mirrored_are(cutouts):
    draws = augment.still(6)._replace(flip=np.ones(6, bool))
    may = np.array([True, False, True, False, True, False])
    images, plain = augment.render(cutouts, draws, 32, may), augment.plain(cutouts, 32)
    np.testing.assert_array_equal(images[~may], plain[~may])
    assert np.abs(images[may].astype(int) - plain[may, :, ::-1]).max() <= 1
    assert np.abs(images[may].astype(int) - plain[may]).max() > 50


def test_without_jitter_colours_stay(rng):
    config = augment.Augment(brightness=0, contrast=0, saturation=0, hue=0)
    matrix, offset = augment.colour_jitter(config, 5, rng)
    np.testing.assert_allclose(matrix, np.tile(np.eye(3), (5, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(offset, 0, atol=1e-7)


def test_hue_turns_primaries_the_way_of_the_colour_circle():
    class Third:  # a generator whose every draw is the upper end of its range
        @staticmethod
        def uniform(low, high, size):
            return np.full(size, high)

    config = augment.Augment(brightness=0, contrast=0, saturation=0, hue=1 / 3)
    matrix, _ = augment.colour_jitter(config, 1, Third)
    np.testing.assert_allclose(matrix[0] @ [1, 0, 0], colorsys.hsv_to_rgb(1 / 3, 1, 1), atol=1e-6)
    np.testing.assert_allclose(matrix[0] @ [1, 1, 1], 1, atol=1e-6)


def test_jitter_of_each_kind_does_what_it_says():
    class Ends:
        @staticmethod
        def uniform(low, high, size):
            return np.full(size, low)

    nothing = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    colour = np.array([0.8, 0.4, 0.2])
    matrix, offset = augment.colour_jitter(augment.Augment(**nothing | {"saturation": 1.0}), 1, Ends)
    np.testing.assert_allclose(matrix[0] @ colour + offset[0], 0.299 * 0.8 + 0.587 * 0.4 + 0.114 * 0.2, atol=1e-6)
    matrix, offset = augment.colour_jitter(augment.Augment(**nothing | {"contrast": 0.5}), 1, Ends)
    np.testing.assert_allclose(matrix[0] @ colour + offset[0], 0.5 + 0.5 * (colour - 0.5), atol=1e-6)
    matrix, offset = augment.colour_jitter(augment.Augment(**nothing | {"brightness": 0.1}), 1, Ends)
    np.testing.assert_allclose(matrix[0] @ colour + offset[0], colour - 0.1, atol=1e-6)


def test_jitter_touches_the_cut_out_only_and_stays_within_bytes(cutouts):
    brighter = augment.render(cutouts, still(6, offset=np.full((6, 3), 0.7), paints=np.full((6, 2, 3), 0.5)), 32)
    darker = augment.render(cutouts, still(6, offset=np.full((6, 3), -1.0), paints=np.full((6, 2, 3), 0.5)), 32)
    assert (brighter[:, 0] == 128).all()
    assert (darker[:, 0] == 128).all()
    assert (brighter[:, 16, 8:24] >= 178).all()  # 0.7 of 255 and more, without running over
    assert brighter[:, 16, 23, 0].min() == 255
    assert (darker[:, 16, 8:24] == 0).all()


@pytest.mark.parametrize(
    ("kind", "colours"), [((1, 0, 0, 0), 1), ((0, 1, 0, 0), 1), ((0, 0, 1, 0), 8), ((0, 0, 0, 1), 60)]
)
def test_backgrounds_have_as_many_colours_as_their_kind(rng, kind, colours):
    draws = augment.draw(augment.Augment(backgrounds=kind), 20, rng)
    canvas = augment.background(draws.paints, draws.mix, 32)
    assert canvas.shape == (20, 3, 1024)
    assert canvas.min() >= 0
    assert canvas.max() <= 1
    count = np.array([len(np.unique(picture.round(5), axis=1).T) for picture in canvas])
    assert (count >= colours).all()
    assert (count <= 64).all()
    assert colours > 1 or (count == 1).all()
    assert kind[0] == 0 or (canvas == 1).all()


def test_rows_of_a_draw_give_the_rows_of_the_batch(cutouts, rng):
    draws = augment.draw(augment.Augment(), 6, rng)
    whole = augment.render(cutouts, draws, 32)
    for rows in (slice(0, 2), slice(2, 6)):
        np.testing.assert_array_equal(augment.render(cutouts[rows], augment.take(draws, rows), 32), whole[rows])


def test_many_pictures_are_rendered_like_few(cutouts, rng):
    draws = augment.draw(augment.Augment(), 6, rng)
    many = augment.Draw(*(np.concatenate([field] * 20) for field in draws))
    images = augment.render(np.concatenate([cutouts] * 20), many, 32)  # 120 pictures: several portions
    np.testing.assert_array_equal(images, np.concatenate([augment.render(cutouts, draws, 32)] * 20))


def test_a_photograph_goes_on_beyond_its_edge():
    photograph = np.full((1, 64, 64, 3), [10, 200, 30], np.uint8)
    images = augment.render(photograph, still(1, shift=[[0.3, 0.3]], angle=[0.4], scale=[0.5]), 32)
    np.testing.assert_array_equal(images, np.broadcast_to(photograph[:, :1, :1], images.shape))
