"""Drawings as they are: what moves them, what they are called, and that a global batch is the same on any processes."""

import numpy as np
import pytest

from mmjax.data import emoji, emoji_pictures
from mmjax.data.emoji_pictures import NAME, EmojiPictures


def test_pictures_move_down_and_right_and_what_comes_in_is_white():
    image = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    found = emoji_pictures.moved(image, np.array([[1, 0], [0, -1]]))
    np.testing.assert_array_equal(found[0, 1:], image[0, :2])
    np.testing.assert_array_equal(found[1, :, :2], image[1, :, 1:])
    assert (found[0, 0] == 255).all()
    assert (found[1, :, 2] == 255).all()


def test_each_drawing_comes_once_an_epoch_as_it_is_but_for_a_pixel_or_a_mirror():
    data = EmojiPictures(NAME)
    images, labels = data.drawings("train")
    batches = data.batches(4, seed=3)
    batch = batches[0]
    label = data.label(labels)
    for image, (concept, artist) in zip(batch["images"], batch["label"], strict=True):
        own = images[(label == [concept, artist]).all(1)]
        assert len(own) == 1
        moves = np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
        may = emoji_pictures.moved(np.repeat(own, 9, 0), moves)
        may = np.concatenate([may, may[:, :, ::-1]])
        assert (may == image).all((1, 2, 3)).any()
    halves = [data.batches(4, seed=3, rows=rows)[0] for rows in (slice(0, 2), slice(2, 4))]
    for name, x in batch.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), x)


@pytest.mark.parametrize("split", ["validation", "twemoji"])
def test_labels_are_those_of_the_pack_and_an_unknown_artist_has_none(split):
    data = EmojiPictures()
    _, labels = data.drawings(split)
    label = data.label(labels)
    pack = emoji.pack()
    assert data.counts == (95, 8, 7)
    for row, concept in zip(label[:50], labels.concept[:50], strict=True):
        assert pack.subgroups[row[0]] == pack.concepts[concept].subgroup
        assert pack.groups[row[1]] == pack.concepts[concept].group
    assert (label[:, 2] == -1).all() == (split == "twemoji")
    assert len(label) == len(pack.split(split)[0])
