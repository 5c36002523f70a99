"""Scenes written as a TFDS data set and read back, without TensorFlow."""

import sys

import numpy as np
import pytest

from mmjax.data import scene_questions, scenes_tfds

SCENES = 30  # of train; the others have a tenth


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    config = scenes_tfds.Config(name="few", scenes=SCENES)
    made = scenes_tfds.ScenesBuilder(
        data_dir=tmp_path_factory.mktemp("tfds"), config=config, file_format="array_record"
    )
    made.download_and_prepare()
    return made


def test_vocabularies_are_known_by_their_size():
    named = {name: config.vocabulary for name, config in scenes_tfds.ScenesBuilder.builder_configs.items()}
    assert named == {"64": 64, "200": 200, "600": scene_questions.MOST}


def test_no_tensorflow_was_needed(builder):
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("split", scene_questions.SPLITS)
def test_what_was_written_is_read(builder, split):
    source = builder.as_data_source(split=split)
    count = SCENES if split == "train" else SCENES // 10
    assert len(source) == count
    wanted = {e.image.tobytes(): e for e in scene_questions.SceneQuestions().examples(split, count)}
    assert len(wanted) == count
    for record in (source[n] for n in range(count)):
        example = wanted.pop(record["image"].tobytes())  # TFDS shuffles
        things = record["things"]
        assert [name.decode() for name in things["name"]] == [thing.name for thing in example.things]
        np.testing.assert_array_equal(things["box"], np.float32([thing.box for thing in example.things]))
        np.testing.assert_allclose(things["visible"], [thing.visible for thing in example.things])
        np.testing.assert_array_equal(np.stack(list(things["mask"]))[..., 0], 255 * example.masks)
        turns, kinds = record["turns"], builder.info.features["turns"]["kind"]
        flat = [(n, turn) for n, conversation in enumerate(example.conversations) for turn in conversation]
        assert list(turns["conversation"]) == [n for n, _ in flat]
        for i, (_, turn) in enumerate(flat):
            assert kinds.int2str(int(turns["kind"][i])) == turn.kind
            assert (turns["question"][i].decode(), turns["answer"][i].decode()) == (turn.question, turn.answer)
            marks = [thing for k, thing in zip(*(record["marks"][x] for x in ("turn", "thing")), strict=True) if k == i]
            assert marks == [thing for thing, _ in scene_questions.marks_of(turn)]
            assert len(marks) == sum(text.count("<") for text in (turn.question, turn.answer))
    assert not wanted
