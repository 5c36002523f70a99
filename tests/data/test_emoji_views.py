"""Views of the pack: stateless, row by row, and of the training drawings only."""

import numpy as np
import pytest

from mmjax.data import emoji, masking, multicrop, pipeline
from mmjax.data.emoji_views import EmojiViews

CROPS = multicrop.MultiCrop(global_size=32, local_size=16, local_count=3)
DATA = EmojiViews(CROPS, masking.BlockMasks(grid=4, group=2))


def test_rows_do_not_depend_on_who_builds_them():
    whole = DATA.batches(6, seed=3)[5]
    assert {name: (x.shape, x.dtype) for name, x in whole.items()} == {
        "global_crops": ((6, 2, 32, 32, 3), np.uint8),
        "local_crops": ((6, 3, 16, 16, 3), np.uint8),
        "masks": ((6, 2, 16), bool),
    }
    halves = [DATA.batches(6, 3, rows)[5] for rows in (slice(0, 2), slice(2, 6))]
    for name, x in whole.items():
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), x)


def test_the_shapes_of_a_batch_are_known_without_building_it():
    spec = pipeline.spec(DATA, 12)
    assert spec["masks"].shape == (12, 2, 16)
    assert spec["local_crops"].shape == (12, 3, 16, 16, 3)


def test_views_of_a_row_show_one_drawing():
    """A view is more like the other view of its row than like other rows' on average, though colours are jittered."""
    quiet = multicrop.MultiCrop(global_size=16, local_count=0, global_scale=(0.9, 1.0), jitter=0, grey=0, solarise=0)
    views = EmojiViews(quiet, shared_background=True).batches(64, 0)[0]["global_crops"].astype(float) / 255
    one, other = views[:, 0], views[:, 1]
    other_flipped = other[:, :, ::-1]
    distance = lambda a, b: np.abs(a[:, None] - b[None]).mean((2, 3, 4))  # noqa: E731
    nearest = np.minimum(distance(one, other), distance(one, other_flipped)).argmin(1)
    assert (nearest == np.arange(64)).mean() > 0.9


def test_views_share_a_background_only_where_asked():
    whole = multicrop.MultiCrop(
        global_size=64, local_size=64, local_count=1, global_scale=(1, 1), local_scale=(1, 1), jitter=0, grey=0,
        blur=(0, 0, 0), solarise=0,
    )  # fmt: skip
    for shared in (True, False):
        batch = EmojiViews(whole, shared_background=shared).batches(40, 0)[0]
        views = np.concatenate([batch["global_crops"], batch["local_crops"]], 1).astype(int)
        views = np.where(np.abs(views - views[:, :1]).max((2, 3, 4), keepdims=True) > 3, views[:, :, :, ::-1], views)
        corners = views[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]  # [B V 4 3], where drawings hardly reach
        differ = np.abs(corners - corners[:, :1]).max((1, 2, 3)) > 3
        assert differ.mean() < 0.5 if shared else differ.mean() > 0.8


def test_an_epoch_holds_each_training_drawing_once():
    batches = DATA.batches(1000, 0)
    _, concepts = emoji.pack().split("train")
    seen = np.concatenate([batches._indices[i] for i in range(-(-len(concepts) // 1000))])[: len(concepts)]
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(concepts)))


def test_a_share_of_the_concepts_is_drawn_by_all_who_draw_them():
    data, all_drawings = (EmojiViews(multicrop.MultiCrop(32, 16, 0), share=share) for share in (0.25, 1.0))
    concepts = emoji.pack().split("train")[1]
    assert data._mine.sum() == np.isin(concepts, np.unique(concepts[data._mine])).sum()
    assert 0.2 < data._mine.mean() < 0.3
    assert all_drawings._mine.all()


def test_evals_read_the_same_splits_as_clips():
    pairs, (groups, labels) = DATA.pairs("concepts"), DATA.groups("concepts")
    theirs = emoji.EmojiData(32)
    np.testing.assert_array_equal(pairs.images, theirs.pairs("concepts").images)
    np.testing.assert_array_equal(groups, theirs.groups("concepts")[0])
    assert labels == emoji.pack().subgroups
    scene = DATA.scenes("twemoji", 4)
    assert scene.images.shape == (4, 32, 32, 3)
    assert scene.present[:, 0].all()
    assert EmojiViews(CROPS, scene_size=48).scenes("twemoji", 1).images.shape == (1, 48, 48, 3)


def test_without_masks_there_are_none():
    assert set(EmojiViews(CROPS).batches(2, 0)[0]) == {"global_crops", "local_crops"}


@pytest.mark.parametrize("name", ["global_crops", "local_crops"])
def test_views_differ(name):
    crops = DATA.batches(4, 0)[0][name]
    assert (crops[:, 0] != crops[:, 1]).any((1, 2, 3)).all()
