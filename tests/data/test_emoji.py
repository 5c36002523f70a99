"""The emoji pack: what is in it, how it is split, and what training reads of it."""

import subprocess
import sys

import numpy as np
import pytest

from mmjax.data import augment, build_emoji_pack, emoji

COUNTS = {  # drawings per artist; a rebuilt pack that loses or wins some must say so here
    "noto": 1555,
    "noto_v1": 1182,
    "fluent_3d": 1555,
    "fluent_color": 1547,
    "fluent_flat": 1547,
    "emojione": 1084,
    "fxemoji": 873,
    "twemoji": 1555,
}
PACK = emoji.pack()
DATA = emoji.EmojiData()
NUMBER = {name: n for n, name in enumerate(PACK.names)}


def named(name: str) -> emoji.Concept:
    return PACK.concepts[NUMBER[name]]


def keys(split: str) -> set[tuple[int, int]]:
    return set(zip(*(axis.tolist() for axis in PACK.split(split)), strict=True))


def test_every_drawing_that_the_index_promises_is_there_and_no_other():
    assert dict(zip(emoji.ARTISTS, PACK.has.sum(1).tolist(), strict=True)) == COUNTS
    for artist, has in zip(emoji.ARTISTS, PACK.has, strict=True):
        visible = (PACK.drawings(artist)[..., 3] > 127).sum((1, 2))  # opaque pixels per drawing
        assert visible[has].min() >= 64, PACK.names[np.flatnonzero(has)[visible[has].argmin()]]  # fog, a thin line
        assert visible[~has].sum() == 0


def test_drawings_of_a_concept_resemble_each_other_more_than_other_concepts():
    """Pictures shifted by one concept, or matched by a wrong name, would lose this."""
    small = {a: emoji.resize(PACK.drawings(a), 8)[..., 3].reshape(len(PACK.names), -1) for a in emoji.ARTISTS}
    outline = {a: (x - x.mean(1, keepdims=True)) / (x.std(1, keepdims=True) + 1) for a, x in small.items()}
    noto = outline.pop("noto")
    assert len(outline) == 7
    for artist, x in outline.items():
        rows = np.flatnonzero(PACK.has[emoji.ARTISTS.index(artist)])
        closeness = x[rows] @ noto.T
        rank = (closeness > closeness[np.arange(len(rows)), rows][:, None]).sum(1)
        assert np.median(rank) < 130, (artist, np.median(rank))  # chance: 777


def test_words_are_unicodes():
    assert len(PACK.concepts) == len(set(PACK.names)) == len({concept.code for concept in PACK.concepts}) == 1555
    assert len(PACK.groups) == 8
    assert len(PACK.subgroups) == 95
    assert named("fox") == emoji.Concept(
        "1f98a", "fox", ("animal", "face", "fox"), "Animals & Nature", "animal-mammal", ("emojione", *FOX_ARTISTS)
    )
    assert named("woman firefighter").code == "1f469-200d-1f692"
    assert all(concept.keywords and all(concept.keywords) for concept in PACK.concepts)


FOX_ARTISTS = ("fluent_3d", "fluent_color", "fluent_flat", "fxemoji", "noto", "noto_v1", "twemoji")


@pytest.mark.parametrize(
    ("language", "fox"), [("de", "Fuchs"), ("es", "zorro"), ("fr", "renard"), ("ja", "キツネ"), ("zh", "狐狸")]
)
def test_other_languages_stand_in_the_same_order(language, fox):
    entries = PACK.languages[language]
    assert len(PACK.languages) == 5
    assert len(entries) == 1555
    assert fox in entries[NUMBER["fox"]]["name"]


def test_splits_share_no_drawing_and_leave_none_out():
    splits = {name: keys(name) for name in ("train", "validation", "concepts", "twemoji")}
    assert sum(map(len, splits.values())) == len(set.union(*splits.values())) == sum(COUNTS.values())
    twemoji = emoji.ARTISTS.index("twemoji")
    assert {artist for artist, _ in splits["twemoji"]} == {twemoji}
    assert len(splits["twemoji"]) == 1555
    assert all(artist != twemoji for name in ("train", "validation", "concepts") for artist, _ in splits[name])
    held_out = {concept for _, concept in splits["concepts"]}
    assert held_out.isdisjoint(concept for name in ("train", "validation") for _, concept in splits[name])
    assert keys("twemoji_concepts") == {(twemoji, concept) for concept in held_out}
    assert 0.08 < len(held_out) / 1555 < 0.12
    assert 0.08 < len(splits["validation"]) / len(splits["train"] | splits["validation"]) < 0.12


def test_splits_never_move():
    """They hang on nothing but code points and artists' names; numbers in the README depend on them."""
    names = [PACK.names[concept] for concept in sorted({concept for _, concept in keys("concepts")})]
    assert names[:4] == [
        "grinning face with big eyes",
        "grinning face with smiling eyes",
        "winking face",
        "kissing face with closed eyes",
    ]
    sizes = {split: len(PACK.split(split)[0]) for split in emoji.SPLITS}
    assert sizes == {"train": 7607, "validation": 801, "concepts": 935, "twemoji": 1555, "twemoji_concepts": 160}


def test_batches_hold_training_drawings_only(monkeypatch):
    seen = set()

    def recorded(artists, concepts, cutouts=emoji.cutouts):
        seen.update(zip(artists.tolist(), concepts.tolist(), strict=True))
        return cutouts(artists, concepts)

    monkeypatch.setattr(emoji, "cutouts", recorded)
    batches = DATA.batches(256, seed=3)
    for i in range(12):
        batches[i]
    train = keys("train")
    assert seen <= train
    assert len(seen) > 0.3 * len(train)  # artists change from epoch to epoch
    assert {artist for artist, _ in seen} == set(range(7))


def test_batches_are_a_pure_function_of_seed_and_number():
    first, again = DATA.batches(16, seed=5), DATA.batches(16, seed=5)
    again[0]
    expected = first[7]
    assert {name: (x.shape, x.dtype.name) for name, x in expected.items()} == {
        "images": ((16, 32, 32, 3), "uint8"),
        "input_ids": ((16, 24), "int32"),
        "attention_mask": ((16, 24), "bool"),
        "label": ((16,), "int32"),
    }
    part = DATA.batches(16, seed=5, rows=slice(4, 12))[7]
    for name, x in expected.items():
        np.testing.assert_array_equal(again[7][name], x)
        np.testing.assert_array_equal(part[name], x[4:12])
    for other in (first[8], DATA.batches(16, seed=6)[7]):
        assert not np.array_equal(other["images"], expected["images"])


def test_an_epoch_shows_each_concept_once():
    concepts = np.unique(PACK.split("train")[1])
    size = 128
    batches = DATA.batches(size, seed=1)
    labels = np.concatenate([batches[i]["label"] for i in range(-(-len(concepts) // size))])
    np.testing.assert_array_equal(np.sort(labels[: len(concepts)]), concepts)


def test_caption_and_picture_of_a_row_belong_together():
    plain = emoji.EmojiData(captions=(1, 0, 0, 0), augmentation=STILL)
    batch, train = plain.batches(64, seed=0)[0], keys("train")
    np.testing.assert_array_equal(
        batch["input_ids"], plain.tokenize([PACK.names[n] for n in batch["label"]])["input_ids"]
    )
    mirrored = []
    for image, n in zip(batch["images"], batch["label"], strict=True):
        artists = np.array([a for a in range(7) if (a, n) in train])
        drawings = augment.plain(emoji.cutouts(artists, np.full(len(artists), n)), 32)
        straight, mirror = (difference(image, side) <= 1 for side in (drawings, drawings[:, :, ::-1]))
        assert straight or mirror, PACK.names[n]
        if not straight:
            mirrored.append(n)
    assert len(mirrored) > 10
    assert all(PACK.concepts[n].may_flip for n in mirrored)


def difference(image: np.ndarray, drawings: np.ndarray) -> int:
    """Largest difference of a pixel from the closest of the drawings."""
    return np.abs(image.astype(int) - drawings).max((1, 2, 3)).min()


STILL = augment.Augment(
    scale=(1, 1), shift=0, rotation=0, brightness=0, contrast=0, saturation=0, hue=0, backgrounds=(1, 0, 0, 0)
)


def test_caption_forms():
    concept = named("fox")
    order = np.array([0.9, 0.1, 0.5] + [0.0] * 29)  # face, fox, animal
    captions = [emoji.caption(concept, form, order, template=1) for form in range(4)]
    assert captions == ["fox", "face, fox, animal", "fox, face, animal", "a drawing of fox"]
    draws = emoji.CaptionDraw.of(np.random.default_rng(0), 4000)
    shares = np.bincount(draws.forms((0.4, 0.1, 0.3, 0.2)), minlength=4) / 4000
    np.testing.assert_allclose(shares, (0.4, 0.1, 0.3, 0.2), atol=0.03)  # 4 standard deviations
    assert max(len(c.keywords) for c in PACK.concepts) <= emoji.MOST_KEYWORDS


@pytest.mark.parametrize(
    ("name", "may_flip"),
    [
        (name, True)
        for name in (
            "fox",
            "grinning face",
            "pizza",
            "racing car",
            "thumbs up",
            "red heart",
            "rocket",
        )
    ]
    + [
        (name, False)
        for name in (
            *("right arrow", "keycap: 3", "three o’clock", "backhand index pointing left", "right-facing fist"),
            *("leftwards hand", "waxing crescent moon", "P button", "map of Japan", "magnifying glass tilted left"),
            *("hundred points", "euro banknote", "1st place medal", "right anger bubble", "Leo", "musical notes"),
        )
    ],
)
def test_what_reads_differently_in_a_mirror_is_never_flipped(name, may_flip):
    assert named(name).may_flip is may_flip


def test_most_concepts_may_flip():
    assert 0.6 < np.mean([concept.may_flip for concept in PACK.concepts]) < 0.8


def test_pairs_are_named_on_white():
    pairs = DATA.pairs("twemoji_concepts")
    labels, subgroups = DATA.groups("twemoji_concepts")
    assert pairs.images.shape == (len(pairs.labels), 32, 32, 3)
    assert pairs.images.dtype == np.uint8
    assert pairs.names == PACK.names
    assert len(labels) == len(pairs.labels)
    assert [pairs.names[n] for n in pairs.labels] == pairs.captions
    assert [subgroups[i] for i in labels] == [PACK.concepts[n].subgroup for n in pairs.labels]
    assert np.median(pairs.images[:, 0, 0]) == 255
    with pytest.raises(ValueError, match="no split 'test' of the emoji pack; there are train, "):
        DATA.pairs("test")


@pytest.mark.parametrize("shrink", [lambda x: emoji.resize(x, 32), lambda x: shrink_while_building(x)])
def test_shrinking_takes_no_colour_from_transparent_pixels(shrink):
    drawing = np.zeros((1, 64, 64, 4), np.uint8)
    drawing[..., 1] = 255  # green that nobody should see
    drawing[:, :, ::2] = (200, 0, 0, 255)
    small = shrink(drawing)
    np.testing.assert_array_equal(np.unique(small.reshape(-1, 4), axis=0), [[200, 0, 0, 128]])


def shrink_while_building(drawing: np.ndarray) -> np.ndarray:
    big = build_emoji_pack.Image.fromarray(np.tile(drawing[0], (2, 2, 1)), "RGBA")  # 128 -> 64
    return build_emoji_pack.fit(big)[None]


def test_atlas_cells_come_back_in_order():
    drawings = [np.full((64, 64, 4), n, np.uint8) if n % 3 else None for n in range(90)]
    atlas = build_emoji_pack.atlas(drawings)
    rows, columns = np.divmod(np.arange(90), build_emoji_pack.COLUMNS)
    expected = [n if n % 3 else 0 for n in range(90)]
    assert atlas[rows * 64 + 63, columns * 64, 2].tolist() == expected


def test_tables_of_matches_refuse_unknown_names():
    icons = object.__new__(build_emoji_pack.Icons)
    icons.set, icons.by_code = {"icons": {"acorn": {}}}, {}
    concepts = [{"name": "chestnut", "code": "1f330", "other_names": ["CHESTNUT"]}]
    assert build_emoji_pack.match_names(icons, concepts, [], {"chestnut": "acorn"}) == ["acorn"]
    assert build_emoji_pack.match_names(icons, concepts, [], {}) == [None]
    with pytest.raises(ValueError, match="do not exist: .'conker'"):
        build_emoji_pack.match_names(icons, concepts, [], {"conker": "acorn"})
    with pytest.raises(ValueError, match="one drawing for several concepts"):
        build_emoji_pack.match_names(icons, [*concepts, {**concepts[0], "name": "acorn"}], [], {"chestnut": "acorn"})


def test_every_file_of_the_pack_is_credited_and_the_wheel_stays_small():
    notice = (emoji.ASSETS / "NOTICE.md").read_text()
    files = [path for path in emoji.ASSETS.iterdir() if path.name.startswith("emoji")]
    assert len(files) == 13
    assert all(f"`{path.name}`" in notice for path in files)
    assert sum(path.stat().st_size for path in files) < 15e6


def test_the_pack_needs_no_tfds():
    heavy = {"tensorflow", "tensorflow_datasets", "torch", "grain"}
    code = f"from mmjax.data import emoji; import sys; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_tfds_builder_works_without_tensorflow(tmp_path):
    from mmjax.data import emoji_tfds

    config = emoji_tfds.Config(name="few", limit=3)
    builder = emoji_tfds.EmojiBuilder(data_dir=tmp_path, config=config, file_format="array_record")
    builder.download_and_prepare()
    assert "tensorflow" not in sys.modules
    for split in ("train", "validation", "concepts", "twemoji"):
        source = builder.as_data_source(split=split)
        assert len(source) == 3
        for record in (source[i] for i in range(3)):
            concept = PACK.concepts[record["concept"]]
            assert (record["artist"], record["concept"]) in keys(split)
            assert record["name"].decode() == concept.name
            assert record["code"].decode() == concept.code
            assert [word.decode() for word in record["keywords"]] == list(concept.keywords)
            assert builder.info.features["subgroup"].int2str(int(record["subgroup"])) == concept.subgroup
            drawing = PACK.drawings(emoji.ARTISTS[record["artist"]])[record["concept"]]
            np.testing.assert_array_equal(record["image"], drawing)
