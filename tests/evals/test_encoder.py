"""Numbers about encoders with heads, against counts by hand on a model whose answers are known."""

import types

import jax
import numpy as np
import pytest
from flax import linen as nn

from mmjax.evals import encoder
from mmjax.models import bert
from mmjax.nn.outputs import Request
from mmjax.text import wordpiece

CONFIG = types.SimpleNamespace(length=16)
MASKING = bert.Masking(mask_id=4, vocab_size=12, never=(2, 3))


class Says(nn.Module):
    """Logits from a table by token id; of the first token only where `texts`."""

    classes: int
    texts: bool = False
    nsp: bool = False

    def __call__(self, input_ids, attention_mask=None, token_type_ids=None, masked_positions=None):
        table = self.variables["params"]["table"]  # [V C]
        ids = input_ids if masked_positions is None else np.take_along_axis(input_ids, masked_positions, 1)
        logits = table[ids[:, 1]] if self.texts else table[ids]
        follows = jax.nn.one_hot(input_ids[:, 1] % 2, 2) if self.nsp else None
        return bert.HeadOutput(logits, None, follows)


def one_hot(answers, classes) -> dict:
    return {"params": {"table": np.eye(classes, dtype=np.float32)[np.array(answers)] * 5}}


def data(**rows):
    rows = {name: np.array(x) for name, x in rows.items()}
    rows.setdefault("attention_mask", np.ones_like(rows["input_ids"], bool))
    return types.SimpleNamespace(examples=lambda split: rows, labels=("O", "B-x", "I-x", "B-y", "I-y"))


def test_classes_are_counted():
    rows = data(input_ids=[[2, n, 3] for n in (5, 6, 7, 8)], labels=[0, 1, 1, 1])
    answers = [0] * 5 + [0, 1, 1, 6]  # right, right, right, wrong
    result = encoder.Classes("validation")(Says(8, texts=True), one_hot(answers, 8), rows, None)
    assert result.metrics == pytest.approx(
        {"validation/accuracy": 0.75, "validation/accuracy_chance": 0.75, "validation/top5_accuracy": 1.0}
    )


def test_more_rows_than_a_batch_and_a_rest(monkeypatch):
    monkeypatch.setattr(encoder, "BATCH_SIZE", 4)
    ids = np.arange(10)[:, None] % 7 + np.array([[0, 1]])
    logits, nsp = encoder.forward(Says(9, nsp=True), one_hot(range(9), 9), {"input_ids": ids})
    np.testing.assert_array_equal(logits.argmax(-1), ids)
    np.testing.assert_array_equal(nsp.argmax(-1), ids[:, 1] % 2)
    with pytest.raises(ValueError, match="there is nothing to read"):
        encoder.forward(Says(9), one_hot(range(9), 9), {"input_ids": np.zeros((0, 3), int)})


def test_hidden_words_count_only_where_words_are_hidden():
    ids = np.tile([2, 5, 6, 7, 8, 9, 10, 3], (200, 1)).astype(np.int32)
    rows = data(input_ids=ids, next_sentence_label=np.arange(200) % 2)
    answers = list(range(12))
    answers[4] = 5  # says 5 at [MASK], what it sees elsewhere
    model, variables = Says(12, nsp=True), one_hot(answers, 12)
    metrics = encoder.HiddenWords("concepts", MASKING)(model, variables, rows, None).metrics
    # One word a row; [MASK] (0.8) hides a 5 in a sixth of rows; 0.1 stay and are seen.
    assert metrics["concepts/word_accuracy"] == pytest.approx(0.8 / 6 + 0.1, abs=0.07)
    assert metrics["concepts/word_accuracy_chance"] == pytest.approx(1 / 6, abs=0.08)
    assert metrics["concepts/next_sentence_accuracy"] == 0.5
    right, wrong = 5 - np.log(np.exp(5) + 11), -np.log(np.exp(5) + 11)
    share = metrics["concepts/word_accuracy"]
    assert metrics["concepts/word_perplexity"] == pytest.approx(np.exp(-share * right - (1 - share) * wrong), rel=1e-4)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-x I-x O B-y", {(0, 1, "x"), (3, 3, "y")}),
        ("B-x B-x", {(0, 0, "x"), (1, 1, "x")}),
        ("I-x I-x I-y", {(0, 1, "x"), (2, 2, "y")}),
        ("O B-x I-y O", {(1, 1, "x"), (2, 2, "y")}),
    ],
)
def test_mentions_are_read_from_tags(tags, expected):
    assert encoder.spans(tags.split()) == expected


def test_f1_is_of_whole_mentions():
    ids = [[2, 5, 6, 7, 8, 3]]
    rows = data(input_ids=ids, labels=[[-100, 1, 2, 0, 3, -100]])  # x x O y
    answers = [0] * 5 + [1, 2, 3, 3]  # x x y y: one mention right, one too many
    metrics = encoder.Spans("concepts")(Says(5), one_hot(answers, 5), rows, None).metrics
    assert metrics["concepts/precision"] == pytest.approx(2 / 3)
    assert metrics["concepts/recall"] == 1
    assert metrics["concepts/f1"] == pytest.approx(0.8)
    assert metrics["concepts/tag_accuracy"] == 0.75
    answers[6] = 0  # the first mention is cut short: its place is wrong
    metrics = encoder.Spans("concepts")(Says(5), one_hot(answers, 5), rows, None).metrics
    assert metrics["concepts/recall"] == 0.5


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece.train(["the cat sat on a mat", "the dog and the cat"] * 3, 60)


def model_of(kind: type, classes: int | None, tokenizer: wordpiece.Tokenizer):
    config = bert.BERTConfig(tokenizer.vocab_size, 16, width=8, depth=1, num_heads=2, hidden=16)
    model = (
        kind(config) if classes is None else kind(config, tuple("OB"[n > 0] + "-x" * (n > 0) for n in range(classes)))
    )
    return model, jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8), int))


@pytest.mark.slow
def test_every_head_answers_texts_of_several_lengths(tokenizer):
    fill, variables = model_of(bert.BERTForMaskedLM, None, tokenizer)
    lines = encoder.fill_masks(fill, variables, tokenizer, ["the [MASK] sat", "a [MASK] and a [MASK]"])
    assert [line for line in lines if not line.startswith("  ")] == ["the [MASK] sat", "a [MASK] and a [MASK]"]
    assert len(lines) == 5  # one line of words for each [MASK]
    variables["params"]["mlm"]["bias"] = variables["params"]["mlm"]["bias"].at[tokenizer.core.token_to_id("cat")].set(9)
    assert encoder.fill_masks(fill, variables, tokenizer, ["the [MASK] sat"])[1].startswith("  cat ")
    classify, variables = model_of(bert.BERTForClassification, 3, tokenizer)
    assert len(encoder.classify(classify, variables, tokenizer, ["the cat", "a dog on a mat"])) == 8
    tag, variables = model_of(bert.BERTForTagging, 2, tokenizer)
    variables["params"]["head"]["bias"] = np.array([0.0, 9.0], np.float32)  # everything begins a mention
    assert encoder.tag(tag, variables, tokenizer, ["the cat"]) == ["the cat", "  the  x", "  cat  x"]
    answer = encoder.ask(tag, variables, Request(("the cat",)), types.SimpleNamespace(tokenizer=tokenizer), None)
    assert answer.text.splitlines()[1] == "  the  x"


def test_mistakes_are_one_sentence(tokenizer):
    fill, variables = model_of(bert.BERTForMaskedLM, None, tokenizer)
    with pytest.raises(ValueError, match=r"'the cat' has no \[MASK\] to fill"):
        encoder.fill_masks(fill, variables, tokenizer, ["a [MASK]", "the cat"])
    with pytest.raises(ValueError, match="a text has 22 tokens .* this model reads 16"):
        encoder.fill_masks(fill, variables, tokenizer, ["[MASK]" * 20])
    with pytest.raises(ValueError, match="give texts"):
        encoder.ask(fill, variables, Request(), types.SimpleNamespace(tokenizer=tokenizer), None)
