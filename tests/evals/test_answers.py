"""What a chat model's answers are worth: counted by hand, and its divergence from the reference token by token."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.data import docs, emoji_questions
from mmjax.data.emoji_questions import EmojiPrompts, Question
from mmjax.evals import answers
from mmjax.evals.answers import Answers, Talk, WinRate
from mmjax.models import llama
from mmjax.nn.outputs import Request
from mmjax.nn.sampling import Generated

ASKED = (
    Question(0, 0, ("Smileys & Emotion",)),
    Question(1, 0, ("Animals & Nature",)),
    Question(2, 1, ("face smiling",)),
    Question(3, 2, ("laugh", "happy")),
)
RNG = jax.random.key(0)


def said(texts: list[str], length: int = 32) -> Generated:
    """As `generate` returns it: the end of the turn counts."""
    end = docs.tokenizer().token_to_id(docs.TURN_END)
    ids = [[*docs.tokenizer().encode(text).ids, end] for text in texts]
    tokens = np.zeros((len(texts), length), np.int32)
    for row, one in zip(tokens, ids, strict=True):
        row[: len(one)] = one
    return Generated(jnp.asarray(tokens), jnp.asarray([len(one) for one in ids]))


@pytest.fixture
def data():
    return types.SimpleNamespace(asked=lambda split: (ASKED, {}))


def test_accuracy_counts_right_answers_by_kind_and_wordy_ones_too(monkeypatch, data):
    wordy = emoji_questions.WORDY[1].format("Animals & Nature")
    spoken = said(["Smileys & Emotion", wordy, "face hat", "happy"])
    monkeypatch.setattr(answers, "answer", lambda model, params, prompts, rng, tokens, temperature: spoken)
    metrics = Answers("held_out")(None, {"params": {}}, data, RNG).metrics
    assert metrics["held_out/accuracy"] == 0.75
    kinds = {kind: metrics[f"held_out/accuracy/{kind}"] for kind in ("group", "subgroup", "keyword")}
    assert kinds == {"group": 1, "subgroup": 0, "keyword": 1}
    assert metrics["held_out/short"] == 0.75
    assert metrics["held_out/tokens"] == pytest.approx(float(np.mean(spoken.lengths)))


def test_the_majority_answers_each_kind_with_its_commonest_training_answer(monkeypatch, data):
    common = answers.commonest()
    counts = [
        sum(common[kind] in one.right for one in emoji_questions.questions("train") if one.kind == kind)
        for kind in range(3)
    ]
    assert common[0] in {"People & Body", "Objects"}
    assert min(counts) > 30
    asked = (Question(0, 0, (common[0],)), Question(1, 0, ("Flags",)))
    monkeypatch.setattr(answers, "answer", lambda *_: said(["a", "b"]))
    data.asked = lambda split: (asked, {})
    assert Answers("held_out")(None, {"params": {}}, data, RNG).metrics["held_out/accuracy_majority"] == 0.5


def test_the_win_rate_counts_ties_as_half_a_win(monkeypatch, data):
    new = ["Smileys & Emotion", "Animals & Nature", "face hat", "sad"]  # 1 1 0 0
    wordy = emoji_questions.WORDY[0].format("Animals & Nature")
    old = ["Smileys & Emotion", wordy, "face hat", "happy"]  # 1 0.5 0 1
    policies = {"new": said(new), "old": said(old)}
    monkeypatch.setattr(answers, "answer", lambda model, params, *_: policies[params])
    monkeypatch.setattr(answers, "divergence", lambda *_: 0.25)
    metrics = WinRate("held_out")(None, {"params": "new", "reference": "old"}, data, RNG).metrics
    assert metrics["held_out/win_rate"] == (0.5 + 1 + 0.5 + 0) / 4
    assert metrics["held_out/quality"] == 0.5
    assert metrics["held_out/reference_quality"] == 2.5 / 4
    assert metrics["held_out/kl"] == 0.25


@pytest.fixture(scope="module")
def model():
    return llama.Llama(dataclasses.replace(llama.LlamaConfig.tiny(), vocab_size=2048, length=256, tied=True))


@pytest.mark.slow
def test_divergence_is_the_log_ratio_of_whole_answers(model):
    prompts = EmojiPrompts().tokenize(["Which group does fox belong to?", "Name a word for fox."])
    prompts = jax.tree.map(jnp.asarray, prompts)
    policy, reference = (model.init(jax.random.key(seed), prompts["input_ids"])["params"] for seed in (0, 1))
    spoken = said(["Animals & Nature", "face"])
    expected = []
    for row in range(2):  # one by one, without padding
        prompt = prompts["input_ids"][row][prompts["attention_mask"][row]]
        answer = spoken.tokens[row, : spoken.lengths[row]]
        ids = jnp.concatenate([prompt, answer])[None]
        sums = []
        for params in (policy, reference):
            logp = jax.nn.log_softmax(model.apply({"params": params}, ids).logits, axis=-1)[0, len(prompt) - 1 : -1]
            sums.append(jnp.take_along_axis(logp, answer[:, None], axis=-1).sum())
        expected.append(sums[0] - sums[1])
    found = answers.divergence(model, policy, reference, prompts, spoken)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-4, atol=1e-5)
    assert answers.divergence(model, policy, policy, prompts, spoken) == 0


def test_a_policy_inside_a_larger_model_speaks(model):
    data = EmojiPrompts()
    variables = model.init(RNG, jnp.zeros((1, 8), jnp.int32))
    alone = Talk(tokens=4)(model, variables, Request(("Name a word for fox.",)), data, RNG)
    pair, inside = types.SimpleNamespace(policy=model), {"params": {"policy": variables["params"], "critic": {}}}
    assert Talk("policy", tokens=4)(pair, inside, Request(("Name a word for fox.",)), data, RNG) == alone
    with pytest.raises(ValueError, match="there is no question"):
        Talk()(model, variables, Request(()), data, RNG)
