"""Rows of codes and captions against rows written by hand."""

import numpy as np
import pytest

from mmjax.objectives import sft
from mmjax.ops.cross_entropy import IGNORED
from mmjax.text import image_tokens
from mmjax.text.image_tokens import ImageTokens

TOKENS = ImageTokens(words=10, codes=4, length=3, start=(1,))
IDS = np.array([[0, 3, 1], [2, 2, 0]])
CAPTIONS, MASK = np.array([[5, 6, 2], [7, 2, 0]]), np.array([[True] * 3, [True, True, False]])


def test_the_published_vocabulary():
    tokens = ImageTokens()
    assert (tokens.begin, tokens.end, tokens.size, tokens.among) == (40_192, 40_193, 40_194, (32_000, 40_192))


def test_a_picture_follows_its_caption_and_only_it_is_learned():
    row = image_tokens.caption_to_picture(TOKENS, CAPTIONS, MASK, IDS)
    np.testing.assert_array_equal(
        row["input_ids"], [[1, 5, 6, 2, 14, 10, 13, 11, 15], [1, 7, 2, 0, 14, 12, 12, 10, 15]]
    )
    np.testing.assert_array_equal(row["attention_mask"], [[True] * 9, [True] * 3 + [False] + [True] * 5])
    labels = sft.labels_of(row["input_ids"], row["spoken"])
    x = IGNORED
    np.testing.assert_array_equal(labels, [[x, x, x, x, 10, 13, 11, 15, x], [x, x, x, x, 12, 12, 10, 15, x]])


def test_a_caption_follows_its_picture_and_only_it_is_learned():
    row = image_tokens.picture_to_caption(TOKENS, IDS, CAPTIONS, MASK)
    np.testing.assert_array_equal(
        row["input_ids"], [[1, 14, 10, 13, 11, 15, 5, 6, 2], [1, 14, 12, 12, 10, 15, 7, 2, 0]]
    )
    labels = sft.labels_of(row["input_ids"], row["spoken"])
    x = IGNORED
    np.testing.assert_array_equal(labels, [[x, x, x, x, x, 5, 6, 2, x], [x, x, x, x, x, 7, 2, x, x]])


def test_a_prompt_ends_where_the_picture_begins():
    row, whole = (
        image_tokens.prompt(TOKENS, CAPTIONS, MASK),
        image_tokens.caption_to_picture(TOKENS, CAPTIONS, MASK, IDS),
    )
    for name in ("input_ids", "attention_mask"):
        np.testing.assert_array_equal(row[name], whole[name][:, :5])


def test_codes_come_back():
    np.testing.assert_array_equal(TOKENS.to_codes(TOKENS.to_words(IDS)), IDS)
    with pytest.raises(ValueError, match=r"ids 10 \.\.\. 13, got 9 to 9"):
        TOKENS.to_codes(np.array([[9]]))
    with pytest.raises(ValueError, match=r"ids 0 \.\.\. 3, got 0 to 4"):
        TOKENS.to_words(np.array([[0, 4, 1]]))
    with pytest.raises(ValueError, match=r"has 3 codes, so ids must be \[B 3\], got \(1, 2\)"):
        TOKENS.to_words(np.array([[0, 1]]))
