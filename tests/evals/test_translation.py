"""Scores of translations: chrF against sacrebleu's numbers, and the eval on a model whose answers are known."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mmjax.data.emoji_names import EmojiNames
from mmjax.evals import translation
from mmjax.models import transformer
from mmjax.nn.outputs import Request

CHRF = json.loads((Path(__file__).parents[1] / "goldens" / "chrf.json").read_text(encoding="utf-8"))
DATA = EmojiNames()


@pytest.mark.parametrize(("found", "wanted", "score"), CHRF)
def test_chrf_equals_sacrebleu(found, wanted, score):
    assert translation.chrf(found, wanted) == pytest.approx(score, rel=1e-12)


def test_the_stored_scores_tell_cases_apart():
    assert len(CHRF) == 16
    assert len({round(score, 3) for *_, score in CHRF}) >= 12


@pytest.fixture
def answers(monkeypatch):
    """Replaces the model: the answer to a pair is looked up, and the languages asked for are kept."""
    asked = []

    def say(answer):
        def translate(model, variables, data, languages, names, search):
            asked.extend(languages)
            return [answer(*one) for one in zip(languages, names, strict=True)]

        monkeypatch.setattr(translation, "translate", translate)
        return asked

    return say


def test_right_answers_are_counted_by_language(answers):
    wanted = {(pair.language, pair.source): pair.target for pair in DATA.pairs("validation")}
    asked = answers(lambda language, name: wanted[language, name] if language == "de" else "")
    metrics = translation.Translations("validation")(None, {}, DATA, None).metrics
    assert sorted(set(asked)) == ["de", "es", "fr"]
    assert [metrics[f"validation/exact/{language}"] for language in ("de", "es", "fr")] == [100, 0, 0]
    assert metrics["validation/chrf/de"] == pytest.approx(100)
    assert metrics["validation/exact"] == pytest.approx(100 / 3)


def test_the_baseline_is_the_english_name(answers):
    answers(lambda language, name: name)
    metrics = translation.Translations("concepts")(None, {}, DATA, None).metrics
    for name in ("exact", "chrf", "exact/es", "chrf/fr"):
        score, *language = name.split("/")
        copied = "/".join([f"concepts/{score}_copy", *language])
        assert metrics[f"concepts/{name}"] == metrics[copied]
    same = [pair.source == pair.target for pair in DATA.pairs("concepts")]
    assert metrics["concepts/exact_copy"] == pytest.approx(100 * np.mean(same))
    assert 2 < metrics["concepts/exact_copy"] < 10


@pytest.fixture(scope="module")
def trained():
    """A model that has learned eight pairs by heart."""
    import optax

    tokenizer = DATA.tokenizer
    model = transformer.Transformer(
        transformer.TransformerConfig(
            tokenizer.vocab_size, width=32, depth=1, decoder_depth=1, num_heads=2, hidden=64, pad_id=tokenizer.pad,
            start_id=tokenizer.start, end_id=tokenizer.end, dropout=0.0, label_smoothing=0.0,
        )
    )  # fmt: skip
    pairs = [pair for pair in DATA.pairs("train") if pair.language != "es"][100:108]
    batch = DATA.rows(pairs)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
    variables = jax.jit(model.init)(jax.random.key(0), **inputs)
    optimizer = optax.adam(1e-2)

    def step(carry, _):
        variables, state = carry
        gradients = jax.grad(lambda v: transformer.loss(model, v, batch, jax.random.key(0), 0)[0])(variables)
        updates, state = optimizer.update(gradients, state)
        return (optax.apply_updates(variables, updates), state), None

    (variables, _), _ = jax.jit(lambda v: jax.lax.scan(step, (v, optimizer.init(v)), length=150))(variables)
    return model, variables, pairs


@pytest.mark.slow
def test_what_was_learned_by_heart_is_said_in_the_language_asked_for(trained, monkeypatch):
    model, variables, pairs = trained
    monkeypatch.setattr(translation, "BATCH_SIZE", 3)  # two batches, and one that is filled up
    languages, sources, targets = zip(*pairs, strict=True)
    found = translation.translate(model, variables, DATA, languages, sources, translation.SEARCH)
    assert found == list(targets)
    assert len({pair.source for pair in pairs}) == 4  # each in two languages


def test_asking_answers_each_text_in_each_language(trained):
    model, variables, pairs = trained
    names = list(dict.fromkeys(pair.source for pair in pairs))[:2]
    answer = translation.ask(model, variables, Request((names[0].upper(), names[1])), DATA, None)
    lines = answer.text.split("\n")
    wanted = {(pair.source, pair.language): pair.target for pair in pairs}
    assert [lines[0], lines[4]] == [names[0].upper(), names[1]]
    assert lines[1] == f"  de  {wanted[names[0], 'de']}"
    assert lines[7] == f"  fr  {wanted[names[1], 'fr']}"
    with pytest.raises(ValueError, match="nothing to translate"):
        translation.ask(model, variables, Request(()), DATA, None)
