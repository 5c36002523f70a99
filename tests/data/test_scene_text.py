"""Places in three ways of writing, and the vocabulary that reads them."""

import json
import re

import numpy as np
import pytest

from mmjax.data import build_scene_concepts, build_scenes_bpe, emoji, scene_questions, scene_text
from mmjax.data.scene_turns import Thing, Turn
from mmjax.text import coordinates, regions

NUMBERS, REGIONS, EMBEDDED = scene_text.Numbers(), scene_text.Regions(), scene_text.Embedded()
FOX, CAT = Thing("fox", (0.125, 0.25, 0.5, 0.999)), Thing("cat", (0.0, 0.015625, 1.0, 1.0))
TURN = Turn("which", "what is at <points>, and <boxes>?", "fox <boxes>, cat <boxes>", ((1,), (0,), (1,)), ((0,),))


def ids_of(text: str) -> list[int]:
    return scene_text.tokenizer().encode(text, add_special_tokens=False).ids


def test_numbers_are_what_shikra_reads():
    assert NUMBERS.write(TURN, (FOX, CAT)) == (
        "what is at [0.31,0.62], and [0.00,0.02,1.00,1.00]?",
        "fox [0.12,0.25,0.50,1.00], cat [0.00,0.02,1.00,1.00]",
    )


def test_regions_are_what_ferret_reads():
    assert REGIONS.write(TURN, (FOX, CAT)) == (
        "what is at [31, 62] <region_fea>, and [0, 1, 99, 99] <region_fea>?",
        "fox [12, 25, 50, 99], cat [0, 1, 99, 99]",
    )


def test_embedded_places_are_no_text():
    assert EMBEDDED.write(TURN, (FOX, CAT)) == (
        "what is at <at><boxes>, and <at><boxes>?",
        "fox <at><boxes>, cat <at><boxes>",
    )
    marks = [scene_text.id_of(token) for token in (scene_text.AT, coordinates.BOXES)]
    assert ids_of("<at><boxes>") == marks
    assert ids_of("fox <at><boxes>, cat").count(marks[1]) == 1


def test_boxes_come_back_to_half_of_the_last_digit():
    rng = np.random.default_rng(0)
    for _ in range(500):
        corners = np.sort(rng.integers(0, 65, (2, 2)) / 64, axis=0)
        thing = Thing("fox", tuple(corners.ravel()))
        turn = Turn("where", "where is the fox?", "<boxes>", ((0,),))
        for form in (NUMBERS, REGIONS):
            (((*box,),),) = form.form.read_boxes(form.write(turn, (thing,)).answer)
            np.testing.assert_allclose(box, thing.box, atol=0.005 + 1e-9)
        asked = NUMBERS.write(Turn("point", "what is at <points>?", "fox", points=((0,),)), (thing,)).question
        (((*at,),),) = coordinates.Plain(precision=2).read_points(asked)
        np.testing.assert_allclose(at, corners.mean(0), atol=0.005 + 1e-9)


def test_ferrets_integers_are_those_of_its_text_in_hundredths():
    """regions.bins of a picture of 640 pixels, ten times as coarse, but for the edge: 1.0 is in the last bin."""
    for x in np.arange(64) / 64:
        (written,) = re.findall(r"\d+", scene_text.Hundredths().write([(x,)]))
        assert int(written) == regions.bins((x * 640, 0), (640, 640))[0] // 10


# Vocabulary


def test_each_word_of_templates_and_names_is_one_token_where_it_stands():
    names = scene_questions.names(scene_questions.MOST)
    texts = [*names, *(f"the {name}, {name}." for name in names), "what is left of it", "what is right of it"]
    texts += [text.replace("{}", "fox") for text in build_scenes_bpe.TEMPLATES if "<points>" not in text]
    pieces = r"<\w+>|[^\s\-.,:;?()<>]+|[\-.,:;?()]"  # words and marks
    several = [text for text in texts if len(ids_of(re.sub(" (?=<)", "", text))) != len(re.findall(pieces, text))]
    assert len(texts) > 1200
    assert several == []
    assert [len(ids_of(f" {word}")) for word in ("above", "below", "behind")] == [1, 1, 1]


def test_each_number_is_one_token():
    for i in range(101):
        assert len(ids_of(f"{i / 100:.2f}")) == len(ids_of(f" {i}")) == len(ids_of(f"{i}")) == 1
        assert len(ids_of(f"[{i / 100:.2f},{i / 100:.2f}]")) == 5
        assert len(ids_of(f"[{i}, {i}] <region_fea>")) == 7  # the blank before a special token is one


def test_texts_come_back():
    core = scene_text.tokenizer()
    texts = [*NUMBERS.write(TURN, (FOX, CAT)), *REGIONS.write(TURN, (FOX, CAT)), "größe, o'clock: 12"]
    for text in texts:
        assert core.decode(ids_of(text), skip_special_tokens=False).replace("<region_fea>", " <region_fea>").replace(
            "  ", " "
        ) == text  # fmt: skip


def test_special_tokens_come_first():
    assert [scene_text.id_of(token) for token in scene_text.SPECIAL] == list(range(8))
    assert scene_text.tokenizer().get_vocab_size() <= build_scenes_bpe.VOCAB_SIZE


def test_the_vocabulary_rebuilds_to_the_committed_file():
    committed = (emoji.ASSETS / "scenes_bpe.json").read_text(encoding="utf-8")
    assert json.loads(build_scenes_bpe.build().to_str()) == json.loads(committed)


@pytest.mark.slow
def test_the_list_of_concepts_rebuilds_to_the_committed_file():
    assert build_scene_concepts.build() == json.loads(build_scene_concepts.PATH.read_text(encoding="utf-8"))


def test_concepts_are_trained_on_and_named_in_two_words_at_most():
    rows = scene_questions.concepts(scene_questions.MOST)
    assert len(set(rows.tolist())) == 600
    assert set(rows.tolist()) <= set(emoji.pack().split("train")[1].tolist())
    names = scene_questions.names(600)
    assert len(set(names)) == 600
    assert all(name == name.lower() and len(name.split()) <= 2 for name in names)
    assert scene_questions.names(64) == names[:64]
    for count in (0, 601):
        with pytest.raises(ValueError, match=f"1 to 600 concepts, got {count}"):
            scene_questions.concepts(count)
