"""Grounding, scored as the authors score it (stored outputs, tests/goldens/make_grounding.py), and by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmjax.evals import grounding
from mmjax.text.coordinates import Bins

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "grounding.json").read_text())


def test_referring_expressions_are_scored_as_by_shikra():
    golden = GOLDEN["rec"]
    found, wanted = ([grounding.one_box(text) for text in golden[kind]] for kind in ("answers", "targets"))
    metrics, theirs = grounding.referring(found, wanted), golden["metrics"]
    assert 0.1 < theirs["accuracy"] < 0.9
    assert metrics["acc@0.5"] == theirs["accuracy"]
    assert metrics["failed"] == theirs["failed"] / len(found)
    np.testing.assert_allclose(metrics["iou"], theirs["iou"], rtol=1e-5)


def test_short_answers_are_scored_as_by_shikra():
    golden = GOLDEN["words"]
    found, wanted = ([grounding.answer_of(text) for text in golden[kind]] for kind in ("answers", "targets"))
    assert found == golden["metrics"]["found"]
    metrics = grounding.exact(found, wanted)
    assert metrics["accuracy"] == golden["metrics"]["accuracy"] > 0.2
    assert metrics["failed"] == golden["metrics"]["failed"] / len(found)


def test_polling_is_scored_as_by_nextchat():
    golden = GOLDEN["pope"]
    metrics = grounding.polling(golden["answers"], golden["targets"])
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        np.testing.assert_allclose(metrics[name], golden["metrics"][name], rtol=1e-12)
    metrics = grounding.polling(["yes", None, None], ["yes", "yes", "no"])  # what can't be read is never right
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert (metrics["recall"], metrics["precision"], metrics["failed"]) == (0.5, 1, pytest.approx(2 / 3))
    with pytest.raises(ValueError, match='"yes" or "no", got'):
        grounding.polling(["yes"], ["maybe"])


def test_half_an_overlap_is_not_more_than_half():
    whole = [0.1, 0.1, 0.7, 0.3]
    for half in ([0.1, 0.1, 0.4, 0.3], [0.4, 0.1, 0.7, 0.3], [0.1, 0.1, 0.7, 0.2]):
        assert grounding.referring([half], [whole])["acc@0.5"] == 0
    curve = grounding.referring([whole, [0.1, 0.1, 0.7, 0.2801], None, [0.7, 0.1, 0.1, 0.3]], [whole] * 4)
    assert (curve["acc@0.5"], curve["acc@0.9"], curve["acc@0.95"], curve["failed"]) == (0.5, 0.5, 0.25, 0.25)
    assert curve["acc@0.5:0.95"] == pytest.approx(0.25 + 0.25 * 0.9)


def test_several_boxes_are_paired_one_to_one():
    a, b, c = [0, 0, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9], [0.1, 0.6, 0.3, 0.9]
    metrics = grounding.several([[a, a], [b, c], [c], None, []], [[a], [c, b], [a, c], [b], []])
    assert metrics == {"precision": 4 / 5, "recall": 4 / 6, "exact": 2 / 5, "failed": 1 / 5}


def test_points_must_lie_in_the_box_or_the_mask():
    box = [0.1, 0.2, 0.4, 0.3]
    metrics = grounding.pointing([[0.1, 0.25], [0.25, 0.4], None], [box] * 3)
    assert metrics == {"accuracy": pytest.approx(1 / 3), "failed": pytest.approx(1 / 3)}
    mask = np.zeros((2, 4), bool)
    mask[1, 3] = True
    assert grounding.pointing([[0.8, 0.6], [0.6, 0.8], [1.0, 0.9]], [mask] * 3)["accuracy"] == pytest.approx(1 / 3)


def test_masks_are_scored_over_the_split_and_by_the_mean():
    a, b = np.zeros((4, 4), bool), np.zeros((2, 6), bool)
    a[:2], b[:, :3] = True, True
    c = np.zeros((4, 4), bool)
    c[:, :2] = True
    metrics = grounding.segmenting([c, b, None, b], [a, b, a, a])
    assert metrics["ciou"] == pytest.approx((4 + 6) / (12 + 6 + 8 + 8))
    assert metrics["miou"] == pytest.approx((1 / 3 + 1) / 4)
    assert (metrics["acc@0.5"], metrics["failed"]) == (0.25, 0.5)  # a mask of another size is no mask


def test_what_answers_say():
    assert grounding.one_box("[0.1,0.2,0.3,0.4]") == [0.1, 0.2, 0.3, 0.4]
    assert grounding.one_box("[0.1,0.2,0.3,0.4;0,0,1,1]") is None
    assert grounding.one_point("here [0.5,0.25].") == [0.5, 0.25]
    assert grounding.one_point("[0.1,0.2,0.3,0.4]") is None
    assert grounding.one_box("<b_st><bin_0> <bin_1> <bin_2> <bin_4><b_ed>", Bins(5)) == [0, 0.25, 0.5, 1]


def test_counts_that_differ_are_an_error():
    for score in (grounding.referring, grounding.several, grounding.pointing, grounding.segmenting, grounding.exact):
        with pytest.raises(ValueError, match="got 1 predictions and 2 targets"):
            score([None], [[0, 0, 1, 1]] * 2)
