"""Texts go in as they end, come back with what follows, and stop where a document ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data import docs
from mmjax.data.docs import DocsData
from mmjax.data.emoji_text import Sentences
from mmjax.evals import continuation
from mmjax.evals.continuation import Continuation, Keywords
from mmjax.nn.outputs import Request
from mmjax.nn.sampling import Generated

DATA = DocsData(length=16)


def test_each_text_is_followed_by_what_was_said_up_to_its_end(monkeypatch):
    core, asked = docs.tokenizer(), []
    ends = [" value of x.", "\nA second line,"]
    tokens = np.zeros((2, 20), np.int32)
    for row, end in zip(tokens, ends, strict=True):
        ids = core.encode(end).ids
        row[: len(ids)] = ids
        row[len(ids) :] = core.token_to_id(docs.END)

    def generate(model, variables, **given) -> Generated:
        asked.append(given)
        return Generated(jnp.asarray(tokens), jnp.full(2, 20))

    monkeypatch.setattr(continuation, "generate", generate)
    texts, rng = ("Return the", "fox:"), jax.random.key(1)
    answer = Continuation(tokens=20, temperature=0.3)(None, {}, Request(texts), DATA, rng)
    assert answer.text == "Return the value of x.\n\nfox:\nA second line,"
    (given,) = asked
    assert (given["max_new_tokens"], given["sampling"].temperature, given["rng"]) == (20, 0.3, rng)
    assert given["sampling"].stop_ids == (core.token_to_id(docs.END),)
    for text, ids, mask in zip(texts, given["input_ids"], given["attention_mask"], strict=True):
        assert mask[-1]  # a text is continued where it ends
        assert core.decode(ids[mask].tolist()) == text


def test_nothing_to_continue_is_an_error():
    with pytest.raises(ValueError, match='there is nothing to continue; give .* such as "Return the"'):
        Continuation()(None, {}, Request(()), DATA, jax.random.key(0))


def test_a_name_is_followed_by_the_keywords_that_were_said(monkeypatch):
    data, asked = Sentences(), []
    words = data.tokenizer

    def generate(model, variables, **given) -> Generated:
        asked.append(given)
        said = words.encode(["animal orange"])[0]
        tokens = np.array([[*said, words.sep, words.mask]] * 2, np.int32)
        return Generated(jnp.asarray(tokens), jnp.full(2, len(said) + 1))

    monkeypatch.setattr(continuation, "generate", generate)
    answer = Keywords()(None, {}, Request(("fox", "red heart:")), data, jax.random.key(0))
    assert answer.text == "fox: animal orange\nred heart: animal orange"
    (given,) = asked
    width = given["input_ids"].shape[1]
    assert width + given["max_new_tokens"] == data.length
    assert given["input_ids"][0][given["attention_mask"][0]][0] == words.cls
    assert given["attention_mask"][:, -1].all()
    assert given["sampling"].stop_ids == (words.sep,)


def test_no_name_is_refused():
    with pytest.raises(ValueError, match='give a name, such as "fox"'):
        Keywords()(None, {}, Request(), Sentences(), jax.random.key(0))
