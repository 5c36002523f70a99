"""COCO's masks beside pycocotools (goldens/coco_masks.json)."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmjax.data import coco_masks

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "coco_masks.json").read_text())


def pixels(runs, size) -> np.ndarray:
    flat = [i % 2 for i, length in enumerate(runs) for _ in range(length)]
    return np.array(flat, bool).reshape(size[1], size[0]).T


@pytest.mark.parametrize("case", GOLDEN["polygons"], ids=lambda case: f"{len(case['runs'])} runs")
def test_polygons_fill_the_same_pixels(case):
    wanted = pixels(case["runs"], case["size"])
    np.testing.assert_array_equal(coco_masks.decode(case["polygons"], *case["size"]), wanted)


def test_run_lengths_are_the_same_text_both_ways():
    assert len(GOLDEN["masks"]) == 24
    for case in GOLDEN["masks"]:
        mask = pixels(case["runs"], case["size"])
        assert coco_masks.encode(mask) == {"size": case["size"], "counts": case["counts"]}
        assert coco_masks.from_text(case["counts"]) == case["runs"]
        for counts in (case["runs"], case["counts"], case["counts"].encode()):
            given = {"size": case["size"], "counts": counts}
            np.testing.assert_array_equal(coco_masks.decode(given, *case["size"]), mask)


def test_large_masks_come_back():
    mask = np.zeros((700, 900), bool)
    mask[100:650, 30:] = True  # differences of more than five bits, and below zero
    mask[300:301, 500:600] = False
    np.testing.assert_array_equal(coco_masks.decode(coco_masks.encode(mask), 700, 900), mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "a mask is a list of polygons or run lengths"),
        ([[1, 2, 3, 4]], "polygon 0 must be x0, y0, x1, y1, ... with three points at least"),
        ([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7]], "polygon 1 must be"),
        ([[1, 2, 3, 4, 5, None]], "polygon 0 must be"),
        ({"counts": [20]}, "keys size and counts, got counts"),
        ([None], "polygon 0 must be"),
        ([[10**400, 2, 3, 4, 5, 6]], "polygon 0 must be"),
        ([[{}] * 6], "polygon 0 must be"),
        (5, "a mask is a list of polygons or run lengths, got 5"),
        ({"size": [5, 4], "counts": [20]}, r"picture of size \[5, 4\], this one's is \[4, 5\]"),
        ({"size": 4, "counts": [20]}, r"picture of size 4, this one's is \[4, 5\]"),
        ({"size": None, "counts": [20]}, "picture of size None"),
        ({"size": [[4], 5], "counts": [20]}, r"picture of size \[\[4\], 5\]"),
        ({"size": [4, 5], "counts": 5}, "counts must be a list of whole numbers or a text, got 5"),
        ({"size": [4, 5], "counts": None}, "counts must be .* got None"),
        ({"size": [4, 5], "counts": {"a": 1}}, "counts must be .* got {'a': 1}"),
        ({"size": [4, 5], "counts": ["a", 3]}, "counts must be whole numbers from 0 on, got 'a'"),
        ({"size": [4, 5], "counts": [17, None]}, "counts must be whole numbers from 0 on, got None"),
        ({"size": [4, 5], "counts": [[3], 17]}, r"counts must be whole numbers from 0 on, got \[3\]"),
        ({"size": [4, 5], "counts": [17.0, 3]}, "counts must be whole numbers from 0 on, got 17.0"),
        ({"size": [4, 5], "counts": []}, "add up to 4 x 5 = 20, got 0 that add up to 0"),
        ({"size": [4, 5], "counts": [3, 4]}, r"add up to 4 x 5 = 20, got 2 that add up to 7"),
        ({"size": [4, 5], "counts": [23, -3]}, "counts must be whole numbers from 0 on, got -3"),
        ({"size": [4, 5], "counts": "1é"}, "character 1 of the run lengths, 'é'"),
        ({"size": [4, 5], "counts": b"1\xe9"}, "character 1 of the run lengths, 'é'"),
        ({"size": [4, 5], "counts": "1P"}, "end in the middle of a number"),
    ],
)
def test_what_is_no_mask_is_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        coco_masks.decode(segmentation, 4, 5)
