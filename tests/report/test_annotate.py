"""Pictures with boxes: where they are drawn, and that words stay inside of their card."""

import numpy as np

from mmjax.report import annotate
from mmjax.report.annotate import Card, Line

BLACK = np.zeros((10, 10, 3), np.uint8)


def test_a_found_box_is_drawn_where_it_is():
    sheet = annotate.annotated(BLACK, [(0.25, 0.5, 0.75, 1.0)], size=101)
    touched = (sheet == annotate.FOUND).all(-1)
    rows, columns = np.nonzero(touched)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (25, 75, 50, 100)
    assert not touched[60:90, 35:65].any()  # an outline
    again = annotate.annotated(BLACK, [(0.75, 1.0, 0.25, 0.5)], size=101)  # reversed, or beyond the edge
    np.testing.assert_array_equal(again, sheet)
    np.testing.assert_array_equal(annotate.annotated(BLACK, [(0.25, 0.5, 0.75, 9.0)], size=101), sheet)


def test_a_true_box_is_green_and_lies_below_what_was_found():
    box = (0.25, 0.25, 0.75, 0.75)
    alone = annotate.annotated(BLACK, (), [box], size=101)
    assert (alone == annotate.TRUE).all(-1).any()
    both = annotate.annotated(BLACK, [box], [box], size=101)
    assert not (both == annotate.TRUE).all(-1).any()


def test_masks_are_tinted():
    mask = np.zeros((10, 10), bool)
    mask[:5] = True
    sheet = annotate.annotated(BLACK, masks=[mask], size=100)
    assert sheet[:50].any()
    assert not sheet[50:].any()


def test_words_stay_in_their_card_and_say_what_is_right():
    long = "word " * 60
    lines = [Line(long), Line(long, True), Line(long, False)]
    sheet = annotate.cards([Card(BLACK, lines), Card(BLACK, [Line("short")])])
    middle = sheet.shape[1] // 2
    gap = sheet[:, middle - 6 : middle + annotate.GAP - 2]  # between the words of one card and the other's picture
    assert (gap == 255).all()
    for colour in (annotate.TRUE, annotate.FOUND):
        assert (np.abs(sheet.astype(int) - colour).sum(-1) < 30).any()
