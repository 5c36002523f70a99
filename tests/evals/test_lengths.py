"""Perplexity by position: a model whose losses are known, so that every token is seen to be counted once."""

import numpy as np
import pytest
from flax import linen as nn

from mmjax.evals import lengths
from mmjax.nn.outputs import LMOutput

TEXT = np.random.default_rng(0).integers(0, 5, (6, 32)).astype(np.int32)


class Forgetful(nn.Module):
    """Knows the next token with a probability that depends on how many tokens are before it."""

    def read(self, kind, ids):
        right = nn.one_hot(np.roll(TEXT, -1, 1)[:, : ids.shape[1]] if kind == "whole" else ids * 0, 5)
        sure = np.arange(1, ids.shape[1] + 1)[:, None] / 8  # log of the odds of the right one
        return LMOutput(right, right * sure)


@pytest.fixture
def result(monkeypatch):
    monkeypatch.setattr(lengths, "texts", lambda split, corpora, length: TEXT[:, :length])
    return lengths.Lengths(("whole", "zero"), trained=8, longest=32, rows=6)(Forgetful(), {}, None, None)


def test_each_range_of_positions_has_its_tokens(result):
    before = np.arange(1, 32) / 8  # for tokens 1 ... 31
    nll = np.log(np.exp(before) + 4) - before
    for start, end in ((1, 8), (8, 16), (16, 32)):
        expected = np.exp(nll[start - 1 : end - 1].mean())
        assert result.metrics[f"whole/perplexity@{end}"] == pytest.approx(expected, rel=1e-5)
    assert set(result.metrics) == {
        f"{kind}/{name}" for kind in ("whole", "zero")
        for name in ("perplexity@8", "perplexity@16", "perplexity@32", "moved@16", "moved@32")
    }  # fmt: skip
    assert len(result.pictures) == 1


def test_a_moved_window_gives_each_token_half_to_all_of_the_trained_length(result):
    """The other kind always expects token 0, the surer the more tokens are before it: 4 to 7 in a moved window."""
    before = np.concatenate([np.arange(4, 8)] * 7) / 8  # tokens 4 ... 31
    nll = np.log(np.exp(before) + 4) - before * (TEXT[:, 4:] == 0)
    for start, end in ((8, 16), (16, 32)):
        expected = np.exp(nll[:, start - 4 : end - 4].mean())
        assert result.metrics[f"zero/moved@{end}"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_texts_are_long_held_out_documents():
    rows = lengths.texts("held_out", ("python",), 256)
    assert rows.shape[1] == 256
    assert len(rows) >= 10
    with pytest.raises(ValueError, match="no document of emoji"):
        lengths.texts("held_out", ("emoji",), 256)
