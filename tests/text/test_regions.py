"""Regions as words and masks, beside apple/ml-ferret's own functions (tests/goldens/ferret_words.json)."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmjax.text import regions

WORDS = json.loads((Path(__file__).parents[1] / "goldens" / "ferret_words.json").read_text())
SIZE = (30, 20)


def pixels_of(mask: np.ndarray) -> list[list[int]]:
    return np.argwhere(mask.T).tolist()  # (x, y), as the original's [W H]


def test_boxes_are_clamped_written_and_masked_as_in_the_original():
    assert len(WORDS["boxes"]) == 5
    for case in WORDS["boxes"]:
        size = tuple(case["size"])
        assert list(regions.clamped(case["box"], size)) == case["regulated"]
        found = regions.box(case["box"], size)
        assert found.words == f"[{', '.join(map(str, case['bins']))}] <region_fea>"
        assert pixels_of(regions.box_mask(case["whole"], size)) == pixels_of(found.mask)
        if case["pixels"] is not None:
            assert pixels_of(found.mask) == case["pixels"]


def test_points_are_written_and_masked_as_in_the_original():
    assert len(WORDS["points"]) == 4
    for case in WORDS["points"]:
        found = regions.point(case["point"], tuple(case["size"]))
        assert found.words == f"[{', '.join(map(str, case['bins']))}] <region_fea>"
        assert pixels_of(found.mask) == case["pixels"]


def test_answers_are_read_as_by_the_original():
    assert len(WORDS["answers"]) == 10
    refused = 0
    for case in WORDS["answers"]:
        if case["found"] is None:
            refused += 1
            with pytest.raises(ValueError, match="with integers, got"):
                regions.parse(case["text"])
            continue
        found = regions.parse(case["text"])
        assert [one.entity for one in found] == case["found"][0]
        assert [list(regions.pixels(one.box, (640, 427))) for one in found] == case["found"][1]
    assert refused == 3


def test_a_box_of_three_numbers_is_refused():
    with pytest.raises(ValueError, match=r"\[x1, y1, x2, y2\] with integers, got \[1, 2, 3\]"):
        regions.parse("a cat [1, 2, 3]")


@pytest.mark.parametrize("size", [(640, 480), (333, 1999), (30, 20)])
def test_coordinates_come_back_within_a_bin_and_a_pixel(size):
    rng = np.random.default_rng(0)
    for place in rng.integers(0, size, (200, 2)).tolist():
        words = regions.words(place * 2, size)
        (found,) = regions.parse(f"it {words}")
        assert all(0 <= v < 1000 for v in found.box)
        back = regions.pixels(found.box, size)
        for i, v in enumerate(back):
            assert place[i % 2] - size[i % 2] / 1000 - 1 <= v <= place[i % 2]


def test_masks_are_cut_by_the_object():
    thing = np.zeros((20, 30), bool)
    thing[8:12, 10:20] = True
    found = regions.point((12, 9), SIZE, within=thing)
    np.testing.assert_array_equal(found.mask, thing & (np.arange(30) <= 17))
    found = regions.box((15, 0, 29, 19), SIZE, within=thing)
    assert found.mask.sum() == 4 * 5
    # Where box and object share nothing the box stays; a point has nothing left.
    assert regions.box((0, 0, 4, 4), SIZE, within=thing).mask.sum() == 25
    with pytest.raises(ValueError, match=r"the point \(1, 1\) has no pixel inside of what it should be in"):
        regions.point((1, 1), SIZE, within=thing)
    with pytest.raises(ValueError, match=r"the mask must be \[H W\] = \[20, 30\], got \[30, 20\]"):
        regions.box((0, 0, 4, 4), SIZE, within=thing.T)


def test_free_forms_are_named_by_the_box_around_them():
    mask = np.zeros((20, 30), bool)
    mask[3, 6] = mask[9, 15] = True
    found = regions.shape(mask)
    assert found.words == "[200, 150, 500, 450] <region_fea>"
    np.testing.assert_array_equal(found.mask, mask)
    assert regions.shape(mask, corners=(0, 0, 10, 10)).mask.sum() == 1
    with pytest.raises(ValueError, match="at least one pixel"):
        regions.shape(np.zeros((20, 30)))


def test_a_scribble_is_a_thick_line():
    found = regions.scribble([(5, 10), (25, 10)], SIZE, thickness=5)
    assert found.mask.sum() == 21 * 5 + 2 * (5 + 3)  # and a round end on both sides: 1 and 2 columns further
    assert regions.around(found.mask) == (3, 8, 27, 12)
    assert regions.scribble([(5, 10)], SIZE, thickness=1).mask.sum() == 1
    with pytest.raises(ValueError, match="outside of the picture of 30 x 20 pixels"):
        regions.scribble([(99, 99)], SIZE)


def test_the_point_that_speaks_for_an_object_lies_in_it():
    rng = np.random.default_rng(0)
    ring = np.ones((20, 30), bool)
    ring[5:15, 5:25] = False
    assert regions.central_point(ring, (0, 0, 29, 19), rng) == (14, 4)  # the middle is (14, 9), where the hole is
    draws = np.array([regions.gaussian_point((10, 4, 20, 12), rng) for _ in range(300)])
    assert (draws >= [10, 4]).all()
    assert (draws <= [20, 12]).all()
    np.testing.assert_allclose(draws.mean(0), [15, 8], atol=0.4)
    np.testing.assert_allclose(draws.std(0), [1.5, 1.2], rtol=0.15)
    with pytest.raises(ValueError, match="x1 <= x2"):
        regions.gaussian_point((3, 0, 2, 1), rng)
