"""Coordinates as text, string for string as Shikra's code writes and reads them (tests/goldens/make_coordinates.py)."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.ops import images
from mmjax.text import coordinates

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "coordinates.json").read_text())
FORMS = {
    "plain": coordinates.Plain(),
    "two": coordinates.Plain(precision=2),
    "small": coordinates.Plain(small_brackets=True),
    "bins": coordinates.Bins(),
    "few": coordinates.Bins(33),
}
places = st.lists(st.floats(0, 1), min_size=4, max_size=4)


@pytest.mark.parametrize("name", FORMS)
def test_from_pixels_to_text_equals_the_original(name):
    assert len(GOLDEN["cases"]) == 60
    for case in GOLDEN["cases"]:
        size = case["width"], case["height"]
        boxes, points = (images.in_square(case[kind], *size) for kind in ("boxes", "points"))
        boxes = boxes.round(3)  # the original rounds boxes before it writes them, which shows with fewer digits
        text = coordinates.fill(
            "one <boxes> two <boxes>, <points><points>.", [boxes[:1], boxes[1:]], [points[:1], points], form=FORMS[name]
        )
        assert text == case["written"][name]


@pytest.mark.parametrize("name", FORMS)
def test_reading_equals_the_original(name):
    found = 0
    for text, expected in zip(GOLDEN["texts"], GOLDEN["read"][name], strict=True):
        assert FORMS[name].read_boxes(text) == expected["boxes"], text
        assert FORMS[name].read_points(text) == expected["points"], text
        found += len(expected["boxes"]) + len(expected["points"])
    assert found >= 2


def test_squares_equal_the_original():
    for pixels, square in GOLDEN["squares"]:
        ours = images.expand_to_square(np.array(pixels, np.uint8))
        np.testing.assert_array_equal(np.asarray(ours), np.array(square, np.uint8))
    assert images.mean_colour((0.48145466, 0.4578275, 0.40821073)) == (122, 116, 104)
    ground = np.asarray(images.expand_to_square(np.zeros((2, 5, 3), np.uint8), (122, 116, 104)))
    assert ground[0, 0].tolist() == ground[-1, 0].tolist() == [122, 116, 104]  # 1 row above, 2 below
    assert not ground[1:3].any()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(places, min_size=1, max_size=3), min_size=1, max_size=3), st.sampled_from(list(FORMS)))
def test_what_is_written_is_read_again(groups, name):
    form, step = FORMS[name], {"two": 0.01, "few": 1 / 32}.get(name, 0.001)
    text = coordinates.fill("{0} {x} <boxes>" * len(groups), groups, form=form)
    assert text.count("{0} {x} ") == len(groups)  # braces stay
    read = form.read_boxes(text)
    assert [len(group) for group in read] == [len(group) for group in groups]
    for ours, group in zip(read, groups, strict=True):
        np.testing.assert_allclose(ours, group, atol=step / 2 + 1e-9)
    spots = [[place[:2] for place in group] for group in groups]
    read = form.read_points(coordinates.fill("<points> " * len(spots), points=spots, form=form))
    np.testing.assert_allclose(read[0], spots[0], atol=step / 2 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), places)
def test_pixels_come_back_within_half_a_digit(width, height, shares):
    box = np.array(shares) * [width, height, width, height]
    written = coordinates.Plain().write([images.in_square(box, width, height)])
    back = images.from_square(coordinates.Plain().read_boxes(written)[0][0], width, height)
    np.testing.assert_allclose(back, box, atol=max(width, height) / 2000 + 1e-6)


def test_tokens_of_bins_are_those_that_are_written():
    form = coordinates.Bins(5)
    assert len(form.tokens()) == len(set(form.tokens())) == 11
    text = form.write([[0, 0.25, 0.5, 1], [0, 0, 1, 1]]) + form.write([[0.5, 0.75], [0, 0]])
    for token in form.tokens():
        assert token in text
        text = text.replace(token, "")
    assert not text.strip()


def test_wrong_counts_and_wrong_groups_are_named():
    with pytest.raises(ValueError, match="has 2 times <boxes>, but 1 groups"):
        coordinates.fill("<boxes> <boxes>", [[[0, 0, 1, 1]]])
    with pytest.raises(ValueError, match="has 0 times <points>, but 1 groups"):
        coordinates.fill("no place", points=[[[0, 0]]])
    for group in ([], [[0.1, 0.2, 0.3]], [[0, 0, 1, 1], [0, 0]]):
        with pytest.raises(ValueError, match="boxes of 4 numbers or points of 2"):
            coordinates.Plain().write(group)
