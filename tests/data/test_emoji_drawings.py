"""The pack as labelled pictures: labels, twins, and batches that any number of processes share."""

import numpy as np
import pytest

from mmjax.data import emoji, emoji_drawings

PACK = emoji.pack()


def test_labels_name_group_subgroup_artist_and_concept():
    fox = PACK.names.index("fox")
    labels = emoji_drawings.labels_of(np.array([0, 7]), np.array([fox, fox]))
    assert [PACK.groups[n] for n in labels.group] == ["Animals & Nature"] * 2
    assert [PACK.subgroups[n] for n in labels.subgroup] == ["animal-mammal"] * 2
    assert [emoji.ARTISTS[n] for n in labels.artist] == ["noto", "twemoji"]
    assert emoji_drawings.counts() == {"group": 8, "subgroup": 95, "artist": 7, "concept": 1555}
    assert labels.take(np.array([1])).artist == [7]


def test_pairs_and_groups_are_the_packs():
    ours, theirs = emoji_drawings.Labeled(), emoji.EmojiData()
    split = "twemoji_concepts"
    np.testing.assert_array_equal(ours.pairs(split).images, theirs.pairs(split).images)
    assert ours.pairs(split).captions == theirs.pairs(split).captions
    np.testing.assert_array_equal(ours.groups(split)[0], theirs.groups(split)[0])
    assert ours.groups(split)[1] == theirs.groups(split)[1]
    with pytest.raises(ValueError, match="read-only"):
        ours.drawings(split)[0][0] = 0


@pytest.mark.parametrize("data", [emoji_drawings.Labeled(), emoji_drawings.Twins()])
def test_a_process_gets_its_rows_of_the_same_batch(data):
    whole, part = data.batches(6, seed=3)[5], data.batches(6, seed=3, rows=slice(2, 5))[5]
    for name, x in whole.items():
        np.testing.assert_array_equal(part[name], x[2:5])
        assert data.batches(6, seed=3)[5][name].tobytes() == x.tobytes()
    assert data.batches(6, seed=4)[5]["images"].tobytes() != whole["images"].tobytes()


def test_twins_are_one_concept_by_two_artists_and_all_pairs_come(monkeypatch):
    asked = []

    def blank(artists, concepts, *_):
        asked.append((artists, concepts))
        return np.zeros((len(concepts), 1, 1, 3), np.uint8)

    monkeypatch.setattr(emoji_drawings, "rendered", blank)
    batches = emoji_drawings.Twins().batches(500, seed=0)
    labels = np.concatenate([batches[n]["concept"] for n in range(40)])
    artists, concepts = (np.concatenate(one).reshape(-1, 2) for one in zip(*asked, strict=True))
    np.testing.assert_array_equal(concepts, np.stack([labels, labels], 1))
    assert (artists[:, 0] != artists[:, 1]).all()
    assert emoji.ARTISTS.index("twemoji") not in artists
    train = set(zip(*PACK.split("train"), strict=True))
    assert set(zip(artists.ravel(), concepts.ravel(), strict=True)) <= train
    pairs = np.zeros((7, 7), int)
    np.add.at(pairs, (artists[:, 0], artists[:, 1]), 1)
    assert (pairs + np.eye(7, dtype=int) > 0).all()
    assert abs(pairs - pairs.T).max() < 0.25 * pairs.max()  # none is always first
    assert not np.isin(labels, PACK.split("concepts")[1]).any()
