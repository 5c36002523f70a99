"""Questions about how a drawing looks: answers that are true of the pictures, and that nothing else gives away."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mmjax.data import emoji, emoji_details
from mmjax.data.augment import plain

MOST = 60


def blobs(image):
    """Sizes and centres (x, y) of the connected parts that are not white, largest first."""
    parts, count = ndimage.label(image.min(-1) < 250, structure=np.ones((3, 3)))
    ink = ndimage.sum_labels(np.ones_like(parts), parts, range(1, count + 1))
    centres = np.array(ndimage.center_of_mass(np.ones_like(parts), parts, range(1, count + 1)))[:, ::-1]
    order = np.argsort(-ink)
    return ink[order], centres[order]


@pytest.mark.parametrize("question", emoji_details.QUESTIONS)
def test_labels_name_an_answer_and_come_again(question):
    one, other = (question("twemoji", 32, MOST) for _ in range(2))
    assert one.images.shape == (len(one.labels), 32, 32, 3)
    assert one.images.dtype == np.uint8
    assert 0.5 * MOST < len(one.labels) <= MOST
    assert one.labels.dtype == np.int32
    assert 0 <= one.labels.min() < one.labels.max() < len(one.answers) == len(set(one.answers))
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert not np.array_equal(one.labels, question("validation", 32, MOST).labels)


def test_a_turned_drawing_is_the_drawing_turned():
    asked = emoji_details.direction("twemoji", 64, MOST)
    artists, concepts = emoji.pack().split("twemoji")
    rows = np.linspace(0, len(concepts) - 1, MOST).round().astype(int)
    upright = plain(emoji.cutouts(artists[rows], concepts[rows]), 64)
    for image, label, original in zip(asked.images, asked.labels, upright, strict=True):
        np.testing.assert_array_equal(image, np.asarray(Image.fromarray(original).rotate(90 * int(label))))


def test_hues_are_those_of_hsv_and_nothing_else_changes():
    rng = np.random.default_rng(0)
    drawings = rng.integers(0, 256, (emoji_details.HUES, 4, 4, 4), dtype=np.uint8)
    steps = np.arange(emoji_details.HUES) / emoji_details.HUES
    painted = emoji_details.painted(drawings, steps)
    np.testing.assert_array_equal(painted[..., 3], drawings[..., 3])
    before, after = (np.stack([np.asarray(Image.fromarray(x[..., :3]).convert("HSV")) for x in y]).astype(int)
                     for y in (drawings, painted))  # fmt: skip
    assert np.abs(after - before)[..., 1:].max() <= 1
    vivid = before[..., 1] * before[..., 2] / 255 > 100
    apart = (after[..., 0] - 255 * steps[:, None, None] + 128) % 256 - 128
    assert np.abs(apart[vivid]).max() <= 3


def test_so_many_copies_with_as_much_ink():
    asked = emoji_details.count("twemoji", 128, MOST)
    solid = [n for n in range(MOST) if asked.images[n].min(-1).min() < 250]
    right = [len([x for x in blobs(asked.images[n])[0] if x > 20]) % (asked.labels[n] + 1) == 0 for n in solid]
    assert np.mean(right) > 0.75  # a drawing may be of several parts, or touch its copy
    ink = np.array([(asked.images[n].min(-1) < 250).mean() for n in range(MOST)])
    few, many = ink[asked.labels < 2], ink[asked.labels > 3]
    assert 0.7 < few.mean() / many.mean() < 1.4


def test_the_small_copy_is_on_that_side_wherever_both_are():
    asked = emoji_details.relation("twemoji", 128, MOST)
    right, centres = [], []
    for image, label in zip(asked.images, asked.labels, strict=True):
        ink, (large, small, *rest) = blobs(image) if len(blobs(image)[0]) > 1 else ([], (None,) * 3)
        if large is None or ink[1] < 0.15 * ink[0]:
            continue  # a drawing of several parts, or copies that touch
        x, y = list(emoji_details.SIDES.values())[label]
        right.append((small - large) @ (x, y) > 0.25 * 128)
        centres.append(large)
    assert len(right) > 0.4 * MOST
    assert np.mean(right) > 0.9
    assert np.ptp(centres, axis=0).min() > 0.3 * 128


def test_expressions_are_of_faces_and_kinds_of_all():
    faces = emoji_details.expression("twemoji", 32)
    assert len(faces.labels) == 115
    assert all(name.startswith("face-") for name in faces.answers)
    assert len(emoji_details.kind("twemoji", 32, MOST).answers) == 95
