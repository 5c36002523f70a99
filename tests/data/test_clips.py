"""The clip pack: what moves, of what, and what training reads of it."""

import io

import numpy as np
import pytest
from PIL import Image

from mmjax.data import build_clip_pack, clips, emoji

PACK = clips.pack()
DATA = clips.ClipData(kinds=("concept", "subgroup"))


def test_what_is_in_it():
    assert PACK.frames.shape == (163, 8, 32, 32, 3)
    assert PACK.frames.dtype == np.uint8
    assert len(set(PACK.concept)) == 163
    assert {"camel", "man running", "bottle with popping cork"} <= set(PACK.names)
    moved = np.abs(np.diff(PACK.frames.astype(float), axis=1)).mean((2, 3, 4)).max(1)
    assert moved.min() > 1, PACK.names[moved.argmin()]  # levels of 255
    sizes = {split: len(PACK.split(split)) for split in clips.SPLITS}
    assert sum(sizes.values()) == len(set(np.concatenate([PACK.split(split) for split in clips.SPLITS]))) == 163
    assert sizes["concepts"] == 15
    assert set(PACK.concept[PACK.split("concepts")]) <= set(emoji.pack().split("concepts")[1])
    assert not set(PACK.concept[PACK.split("train")]) & set(emoji.pack().split("concepts")[1])
    with pytest.raises(ValueError, match="no split 'test' of the clip pack; there are train, validation, concepts"):
        PACK.split("test")
    with pytest.raises(ValueError, match="read-only"):
        PACK.frames[0] = 0


def test_a_clip_shows_the_concept_that_it_is_said_to():
    """Nearer in outline to Fluent's drawing of its own concept than to most others; off by one, it would not be."""
    drawn = emoji.resize(emoji.pack().drawings("fluent_3d")[PACK.concept], 16).astype(float)
    drawn = (drawn[..., :3] * drawn[..., 3:] / 255 + 255 - drawn[..., 3:]).mean(-1).reshape(163, -1)
    shown = PACK.frames.astype(float).mean((1, 4)).reshape(163, 16, 2, 16, 2).mean((2, 4)).reshape(163, -1)
    x, y = ((one - one.mean(1, keepdims=True)) / one.std(1, keepdims=True) for one in (shown, drawn))
    closeness = x @ y.T
    rank = (closeness > np.diag(closeness)[:, None]).sum(1)
    assert np.median(rank) == 0, np.median(rank)  # of 163


def test_a_process_gets_its_rows_of_the_same_batch():
    whole, part = DATA.batches(6, seed=3)[5], DATA.batches(6, seed=3, rows=slice(2, 5))[5]
    assert {name: (x.shape, x.dtype.name) for name, x in whole.items()} == {
        "clips": ((6, 8, 32, 32, 3), "uint8"),
        "label": ((6, 2), "int32"),
    }
    for name, x in whole.items():
        np.testing.assert_array_equal(part[name], x[2:5])
        assert DATA.batches(6, seed=3)[5][name].tobytes() == x.tobytes()
    assert DATA.batches(6, seed=4)[5]["clips"].tobytes() != whole["clips"].tobytes()
    assert DATA.counts == (1555, 95)


def test_clips_begin_anywhere_and_are_mirrored_where_that_means_the_same():
    train = PACK.split("train")
    number = {PACK.concept[n]: n for n in train}
    batches = DATA.batches(len(train), seed=0)
    assert sorted(batches[0]["label"][:, 0]) == sorted(number)
    starts, mirrored = set(), set()
    for step in range(3):
        for found, (concept, _) in zip(*(batches[step][name] for name in ("clips", "label")), strict=True):
            stored = PACK.frames[number[concept]]
            fits = {(s, d) for s in range(8) for d in (1, -1) if (np.roll(stored, -s, 0)[:, :, ::d] == found).all()}
            assert fits, PACK.names[number[concept]]
            if len(fits) == 1:
                ((start, direction),) = fits
                starts.add(start)
                mirrored |= {concept} if direction < 0 else set()
    assert starts == set(range(8))
    assert len(mirrored) > 60
    assert all(emoji.pack().concepts[n].may_flip for n in mirrored)


def test_fewer_frames_are_equally_far_apart():
    found, label = clips.ClipData(frames=4).clips("concepts")
    np.testing.assert_array_equal(found, PACK.frames[PACK.split("concepts"), ::2])
    np.testing.assert_array_equal(label[:, 0], PACK.concept[PACK.split("concepts")])
    with pytest.raises(ValueError, match="must divide them, got 3"):
        clips.ClipData(frames=3)


def test_frames_are_taken_over_the_whole_clip_on_white():
    greys = [Image.new("RGBA", (64, 64), (10 * n, 0, 0, 255 if n else 0)) for n in range(16)]
    file = io.BytesIO()
    greys[0].save(file, "WEBP", save_all=True, append_images=greys[1:], lossless=True, duration=40)
    found = build_clip_pack.small(file.getvalue())
    np.testing.assert_array_equal(found[:, 0, 0, 0], [255, 20, 40, 60, 80, 100, 120, 140])
    np.testing.assert_array_equal(clips.to_atlas(found[None])[:, 32:64], found[1])
    still = io.BytesIO()
    greys[1].save(still, "WEBP")
    assert build_clip_pack.small(still.getvalue()) is None


def test_the_embedded_data_stays_small():
    assert sum(path.stat().st_size for path in clips.ASSETS.iterdir()) <= 20e6
