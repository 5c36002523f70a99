"""Pictures mark what is right, and show each thing where it belongs."""

import numpy as np
import pytest

from mmjax.report import pictures

RED, BLUE = (255, 0, 0), (0, 0, 255)


def plain(colour, side=8):
    return np.full((side, side, 3), colour, np.uint8)


def count(picture, colour):
    return int((picture == colour).all(axis=-1).sum())


def test_the_gallery_shows_images_in_order_and_frames_the_right_one():
    images = np.stack([plain(RED), plain(BLUE)])
    neither = pictures.gallery([pictures.Row("query", images, np.array([False, False]))])
    second = pictures.gallery([pictures.Row("query", images, np.array([False, True]))])
    assert count(neither, pictures.RIGHT) == 0
    columns = np.flatnonzero((second == pictures.RIGHT).all(axis=-1).any(axis=0))
    red, blue = (np.flatnonzero((neither == c).all(axis=-1).any(axis=0)) for c in (RED, BLUE))
    assert red.max() < blue.min()
    assert columns.min() > red.max() - 3
    assert columns.min() < blue.min()
    assert columns.max() > blue.max()  # the frame is around the second image only


def test_a_row_more_makes_the_gallery_higher_and_the_query_is_written():
    row = pictures.Row("query", np.stack([plain(RED)]), np.array([False]))
    one, three = (pictures.gallery([row] * n) for n in (1, 3))
    assert three.shape[0] > one.shape[0]
    assert three.shape[1] == one.shape[1]
    silent = pictures.gallery([row._replace(query="")])
    assert count(silent, pictures.INK) == 0 < count(one, pictures.INK)


def test_tiles_write_right_lines_in_green():
    one = pictures.tiles([pictures.Tile(plain(RED), ["cat", "dog"], [False, False])])
    assert count(one, pictures.RIGHT) == 0
    assert count(pictures.tiles([pictures.Tile(plain(RED), ["cat", "dog"], [False, True])]), pictures.RIGHT) > 0
    assert count(one, RED) > 0.9 * pictures.THUMB**2


def test_a_caption_stands_above_the_picture():
    picture = np.full((40, 300, 3), 7, np.uint8)
    found = pictures.captioned(picture, "how to read it")
    np.testing.assert_array_equal(found[-40:], picture)
    assert (found[:-40] < 200).any()


def test_heat_goes_from_dark_to_bright_and_marks_what_is_no_number():
    colours = pictures.heat(np.array([[0.0, 5.0], [10.0, np.nan]])).astype(int).sum(axis=-1)
    assert colours[0, 0] < colours[0, 1] < colours[1, 0]
    np.testing.assert_array_equal(pictures.heat(np.array([[np.nan]])), [[[160] * 3]])
    assert pictures.heat(np.ones((2, 3))).shape == (2, 3, 3)


def test_the_matrix_rings_the_best_name_of_each_image():
    scores = np.array([[0.9, 0.1], [0.8, 0.2]])  # the second image is nearest to the first name
    picture = pictures.matrix(scores, np.stack([plain(RED), plain(BLUE)]), ["a", "b"])
    ring = (picture == (255, 80, 60)).all(axis=-1)
    rows, columns = ring.any(axis=1).nonzero()[0], ring.any(axis=0).nonzero()[0]
    assert rows.max() - rows.min() > 80  # in both rows
    assert columns.max() - columns.min() < 50  # in one column
    assert count(picture, BLUE) > 1000


def test_the_map_is_the_right_way_up_and_leaves_broken_points_out():
    points = np.array([[0.0, 1.0], [0.0, -1.0], [np.nan, 0.0]])
    images = np.stack([plain(RED), plain(BLUE), plain((0, 255, 0))])
    picture = pictures.scatter(points, images, ["x", "y", "y"], 8)
    up, down = (np.flatnonzero((picture == c).all(axis=-1).any(axis=1)).mean() for c in (RED, BLUE))
    assert up < down
    assert count(picture, (0, 255, 0)) == 0


def test_only_the_largest_groups_get_a_colour():
    points, images = np.random.default_rng(0).normal(size=(6, 2)), np.stack([plain((250, 250, 250))] * 6)
    picture = pictures.scatter(points, images, ["big"] * 3 + ["middle"] * 2 + ["small"], coloured=2)
    assert all(count(picture, colour) > 200 for colour in (*pictures.CATEGORIES[:2], pictures.OTHERS))
    assert not any(count(picture, colour) for colour in pictures.CATEGORIES[2:])


def test_long_text_is_cut_to_the_width():
    assert pictures.fit("cat", 100) == "cat"
    cut = pictures.fit("a very long name of a thing", 100)
    assert cut.endswith("…")
    assert pictures.font(pictures.TEXT).getlength(cut) <= 101
    assert pictures.fit("two\nlines", 500) == "two lines"


@pytest.mark.parametrize("shape", [(10, 30), (30, 10), (1, 1)])
def test_thumbnails_keep_proportions(shape):
    found = np.asarray(pictures.thumbnail(np.zeros((*shape, 3), np.uint8), 60))
    assert found.shape == (60, 60, 3)
    inside = (found < 128).all(axis=-1)
    assert inside.any(axis=1).sum() / inside.any(axis=0).sum() == pytest.approx(shape[0] / shape[1])


def test_a_contact_sheet_shows_every_value_as_a_block_in_its_row_and_column():
    halves = np.stack([plain(RED, 1)[0], plain(BLUE, 1)[0]])  # [2 1 3]: red above blue
    sheet = pictures.contact_sheet([[plain(RED, 3), halves]] * 2, ["picture", "map"], size=40)
    assert count(sheet, RED) == 2 * (40 * 40 + 20 * 40)
    assert count(sheet, BLUE) == 2 * 20 * 40
    blue = np.flatnonzero((sheet == BLUE).all(axis=-1).any(axis=0))
    assert blue.min() >= sheet.shape[1] // 2
    assert len(blue) == 40
