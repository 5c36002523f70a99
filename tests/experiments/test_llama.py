"""The way from text to answers at its tiny size, run after run, and what rollouts hand to their losses."""

import dataclasses
import functools
import re
import runpy
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import cli
from mmjax.data import docs, emoji_questions
from mmjax.models import llama
from mmjax.models.reward import ActorCritic, RewardModel
from mmjax.objectives import ppo as ppo_loss
from mmjax.objectives.grpo import GRPO
from mmjax.objectives.ppo import PPO
from mmjax.ops.cross_entropy import IGNORED
from mmjax.text import chat
from mmjax.train import loop, overrides, run_folder, sources, trees

SFT, REWARD = "llama_sft", "llama_reward"
STARTS = {  # in an order in which each finds its sources: subtree of the variables -> the run whose parameters it is
    "llama_text": {},
    SFT: {"params": "llama_text"},
    REWARD: {"params/language_model": SFT},
    "llama_ppo": {"params/policy": SFT, "reference": SFT, "params/critic": REWARD, "judge": REWARD},
    "llama_dpo": {"params": SFT, "reference": SFT},
    "llama_grpo": {"params": SFT, "reference": SFT},
    "llama_lengths": {},
}
STARTED = [stem for stem, start in STARTS.items() if start]
ANSWERS = {"accuracy", "accuracy_majority", "short", "tokens", *(f"accuracy/{kind}" for kind in emoji_questions.KINDS)}
WINS = ANSWERS | {"win_rate", "kl", "quality", "reference_quality"}
SAID = {  # names of the numbers; those of a split stand behind its name
    "llama_text": {"perplexity", "bits_per_token"},
    SFT: ANSWERS,
    REWARD: {"reward_accuracy", "reward_accuracy/wrong", "reward_accuracy/wordy"},
    **dict.fromkeys(("llama_ppo", "llama_dpo", "llama_grpo"), WINS),
}
LENGTHS = {
    f"{kind}/{name}" for kind in ("learned", "sinusoidal", "rotary")
    for name in ("perplexity@8", "perplexity@16", "perplexity@32", "moved@16", "moved@32")
}  # fmt: skip
QUESTION = "Which group does fox belong to?"


def file_of(stem: str) -> Path:
    return Path(f"experiments/{stem}.py").resolve()


# The chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """The folder of all runs, and how each ended."""
    runs, ended = tmp_path_factory.mktemp("home") / "runs", {}
    for stem in STARTS:
        recipe = run_folder.Recipe(file_of(stem), "tiny")
        experiment = recipe.build()
        mesh = experiment.mesh.build(jax.devices()[:1])
        ended[stem] = loop.train(experiment, runs / f"{stem}-tiny", recipe=recipe, runs=runs, mesh=mesh)
    return runs, ended


@pytest.mark.train
@pytest.mark.parametrize("stem", STARTS)
def test_the_chain_runs_and_says_its_numbers(stem, chain):
    outcome = chain[1][stem]
    assert outcome.state.step == 8
    names = {f"held_out/{name}" for name in SAID[stem]} if stem in SAID else LENGTHS
    assert outcome.metrics.keys() == names
    assert all(np.isfinite(value) for value in outcome.metrics.values())


def leaves_of(tree: dict, path: str) -> dict[str, np.ndarray]:
    return jax.device_get(trees.leaves(trees.subtree(tree, path)))


@pytest.mark.train
@pytest.mark.parametrize("stem", STARTED)
def test_each_starts_from_the_last_parameters_of_its_sources(stem, chain):
    runs, ended = chain
    experiment = overrides.load_experiment(file_of(stem), "tiny")
    task, loaded = experiment.task, sources.load(experiment.init_from, "tiny", runs=runs)
    batch = experiment.data.batches(2, 0)[0]
    first = jax.jit(lambda rng: task.init(task.model, rng, batch, loaded))(jax.random.key(0))
    last = ended[stem].state.variables
    assert {path.split("/")[0] for path in STARTS[stem]} == set(first) == set(last)
    for path, source in STARTS[stem].items():
        wanted = leaves_of(ended[source].state.variables, "params")
        for tree, same in ((first, True), (last, not path.startswith("params"))):  # what is not trained stays
            found = leaves_of(tree, path)
            assert found.keys() == wanted.keys()
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted) == same, path


def continued(model, params: dict, row: list[int], count: int) -> list[int]:
    """The likeliest tokens one by one, each time from the whole text."""
    read, start = jax.jit(lambda ids: model.apply({"params": params}, ids).logits[0]), len(row)
    while len(row) < start + count and row[-1] not in emoji_questions.stop_ids():
        ids = np.zeros((1, 128), np.int32)  # what comes later changes nothing
        ids[0, : len(row)] = row
        row = [*row, int(read(ids)[len(row) - 1].argmax())]
    return row[start:]


def ids_of(*turns: str) -> list[int]:
    messages = emoji_questions.messages(*turns)
    return chat.encode(docs.tokenizer(), chat.chatml(messages, answer=len(turns) == 1)).ids


def ask(runs: Path, stem: str, capsys, *texts: str) -> str:
    assert cli.main(["sample", str(runs / f"{stem}-tiny"), *texts]) == 0
    return capsys.readouterr().out.removesuffix("\n")


@pytest.mark.train
@pytest.mark.parametrize("stem", [SFT, "llama_ppo", "llama_dpo", "llama_grpo"])
def test_a_person_is_answered_by_the_policy(stem, chain, capsys):
    runs, ended = chain
    model, params = overrides.load_experiment(file_of(stem), "tiny").task.model, ended[stem].state.variables["params"]
    if stem == "llama_ppo":
        model, params = model.policy, params["policy"]
    ids = continued(model, jax.device_get(params), ids_of(QUESTION), 32)
    assert ask(runs, stem, capsys, QUESTION) == docs.tokenizer().decode(ids, skip_special_tokens=True)


@pytest.mark.train
def test_a_person_is_told_scores_continuations_and_perplexities(chain, capsys):
    runs, ended = chain
    answers = ("Animals & Nature", "That is a good question. I would say Objects.")
    model = overrides.load_experiment(file_of(REWARD), "tiny").task.model
    for line, answer in zip(ask(runs, REWARD, capsys, QUESTION, *answers).split("\n"), answers, strict=True):
        values = model.apply(ended[REWARD].state.variables, jnp.asarray([ids_of(QUESTION, answer)])).values
        assert line.split(maxsplit=1) == [f"{float(values[0, -1]):+.3f}", answer]
    text = ask(runs, "llama_text", capsys, "Return the")
    assert text.startswith("Return the")
    assert len(text) > len("Return the")
    line = ask(runs, "llama_lengths", capsys, "fox: animal mammal")
    assert re.fullmatch(r"\d+ tokens, perplexity: learned [\d.]+, sinusoidal [\d.]+, rotary [\d.]+", line)


@pytest.mark.parametrize("stem", STARTED)
def test_without_its_sources_the_command_that_makes_the_first_is_named(stem, tmp_path):
    experiment = overrides.load_experiment(file_of(stem), "tiny")
    wanted = "llama_text" if stem == SFT else SFT
    with pytest.raises(FileNotFoundError, match=rf"mmjax train experiments/{wanted}\.py --size tiny"):
        sources.load(experiment.init_from, "tiny", runs=tmp_path)


# Rollouts


@functools.cache
def module(stem: str) -> types.SimpleNamespace:
    return types.SimpleNamespace(**runpy.run_path(str(file_of(stem))))


# 64 ids, so that about every other answer says one of the two that end it.
CONFIG = dataclasses.replace(llama.LlamaConfig.tiny(), length=64)
LM, CRITIC = llama.Llama(CONFIG), RewardModel(llama.Llama(CONFIG))
P = 5  # tokens of a prompt's row
PROMPTS = {
    "input_ids": np.random.default_rng(3).integers(3, 64, (4, P)).astype(np.int32),
    "attention_mask": np.arange(P) >= np.array([[0], [3], [1], [2]]),
}


def weights(model, seed: int) -> dict:
    shapes = jax.eval_shape(model.init, jax.random.key(0), PROMPTS["input_ids"])["params"]
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: 0.4 * rng.normal(size=x.shape).astype(np.float32), shapes)


def answer_of(batch: dict, row: int) -> list[int]:
    """Read off the ids alone: up to what ends it."""
    said = np.asarray(batch["input_ids"])[row, P:].tolist()
    return said[: next((i + 1 for i, token in enumerate(said) if token in emoji_questions.stop_ids()), len(said))]


@functools.partial(jax.jit, static_argnums=0)
def read(model, params, ids):
    return model.apply({"params": params}, ids)


def asked_anew(model, params: dict, tokens: list[int]) -> list:
    """What a model makes of the first token, of the first two, ...: a row alone, nothing before it and no mask."""
    found = []
    for count in range(1, len(tokens) + 1):
        ids = np.zeros((1, 40), np.int32)
        ids[0, :count] = tokens[:count]
        out = read(model, params, ids)
        found.append(np.asarray(out.logits if hasattr(out, "logits") else out.values)[0, count - 1])
    return found


def naive(batch: dict, rows: list[int], params: dict, temperature: float) -> np.ndarray:
    """log p of each token of the answers, [B T] where it is predicted; 0 elsewhere and in other rows."""
    found = np.zeros(batch["input_ids"].shape, np.float32)
    for row in rows:
        prompt, answer = prompt_of(batch, row), answer_of(batch, row)
        logits = asked_anew(LM, params, [*prompt, *answer])[len(prompt) - 1 : -1]
        for t, (one, token) in enumerate(zip(logits, answer, strict=True)):
            found[row, P - 1 + t] = jax.nn.log_softmax(one / temperature)[token]
    return found


def prompt_of(batch: dict, row: int) -> list[int]:
    mask = np.asarray(batch["attention_mask"])[row, :P]
    return np.asarray(batch["input_ids"])[row, :P][mask].tolist()


def check_rows(batch: dict, repeats: int) -> np.ndarray:
    """The rows are the prompts and what was said, and their labels the said tokens; which answers ended."""
    ids, labels, mask = (np.asarray(batch[name]) for name in ("input_ids", "labels", "attention_mask"))
    np.testing.assert_array_equal(ids[:, :P], np.repeat(PROMPTS["input_ids"], repeats, axis=0))
    np.testing.assert_array_equal(mask[:, :P], np.repeat(PROMPTS["attention_mask"], repeats, axis=0))
    answers = [answer_of(batch, row) for row in range(len(ids))]
    for row, answer in enumerate(answers):
        wanted = np.full(ids.shape[1], IGNORED)
        wanted[P - 1 : P - 1 + len(answer)] = answer
        np.testing.assert_array_equal(labels[row], wanted)
        np.testing.assert_array_equal(mask[row, P:], np.arange(ids.shape[1] - P) < len(answer))
    assert len({tuple(answer) for answer in answers}) == len(answers)  # each draws its own
    return np.array([answer[-1] in emoji_questions.stop_ids() for answer in answers])


PPO_TASK = PPO(beta=0.5, temperature=0.8)
ACTOR = ActorCritic(LM, CRITIC)


def ppo_variables(reference: int) -> dict:
    params = {"policy": weights(LM, 0), "critic": weights(CRITIC, 1)}
    return {"params": params, "reference": weights(LM, reference), "judge": weights(CRITIC, 2)}


def ppo_rollout(variables: dict) -> dict:
    return module("llama_ppo").Rollout(PPO_TASK)(ACTOR, variables, PROMPTS, jax.random.key(0), 0)


@pytest.mark.slow
@pytest.mark.parametrize("same", [False, True], ids=["other reference", "first update"])
def test_ppos_rollout_is_what_its_four_networks_say_one_by_one(same):
    variables = ppo_variables(reference=0 if same else 3)
    batch, rows = ppo_rollout(variables), list(range(4))
    ended = check_rows(batch, 1)
    params = variables["params"]
    old, reference = (naive(batch, rows, one, 0.8) for one in (params["policy"], variables["reference"]))
    np.testing.assert_allclose(batch["old_log_probs"], old, rtol=1e-4, atol=1e-5)
    values, scores = np.zeros_like(old), np.zeros(4, np.float32)
    for row in rows:
        prompt, answer = prompt_of(batch, row), answer_of(batch, row)
        expected = asked_anew(CRITIC, params["critic"], [*prompt, *answer])[len(prompt) - 1 : -1]
        values[row, P - 1 : P - 1 + len(answer)] = expected
        scores[row] = asked_anew(CRITIC, variables["judge"], [*prompt, *answer])[-1]
    assert ended.any()
    assert (scores[~ended] > scores.min()).any()
    scores = np.where(ended, scores, scores.min())  # what does not end is as bad as the worst
    mask = old != 0
    np.testing.assert_allclose(np.asarray(batch["old_values"])[mask], values[mask], rtol=1e-4, atol=1e-5)
    wanted = PPO_TASK.experience(*(jnp.asarray(x) for x in (old, reference, values, scores, mask)))
    for name in ("returns", "advantages"):
        np.testing.assert_allclose(batch[name], wanted[name], rtol=1e-3, atol=1e-4, err_msg=name)

    metrics = jax.jit(lambda v, b: PPO_TASK(ACTOR, v, b, None, 0)[1].metrics)(variables, batch)
    assert metrics["approx_kl"] < 1e-10  # the ratio is 1, to the last digits, whatever the temperature
    assert metrics["clip_fraction"] == 0
    if same:  # and without a divergence nothing but the score is earned
        only = ppo_loss.token_rewards(jnp.asarray(scores), jnp.zeros_like(old), mask, 0.0)
        earned = ppo_loss.advantages(only, jnp.asarray(values), mask, PPO_TASK.gamma, PPO_TASK.lam) + values
        np.testing.assert_allclose(batch["returns"], earned, rtol=1e-3, atol=1e-4)
    else:
        assert np.abs(old - reference).max() > 0.1


def test_ppos_reference_and_judge_are_not_mistaken_for_each_other():
    variables = ppo_variables(reference=3)
    variables["reference"], variables["judge"] = variables["judge"], variables["reference"]
    with pytest.raises(Exception, match="embed|language_model"):
        ppo_rollout(variables)


QUALITIES = np.array([[1, 0, 0.5, 0], [0, 0, 0, 0], [1, 1, 0, 0.5], [0.5, 0.5, 1, 0.5]], np.float32)  # [P G]


def test_grpos_rollout_scores_each_answer_against_its_own_question(monkeypatch):
    questions, grpo = emoji_questions.questions("train"), GRPO(beta=0.04, temperature=0.8)
    index = np.array([5, 900, 2000, 3001], np.int32)
    asked = [questions[i] for i in index]
    assert len({one.right for one in asked}) == 4
    heard = []

    def decode(tokens) -> list[str]:
        heard.append(np.asarray(tokens))
        texts = {0.0: "nothing at all", 0.5: emoji_questions.WORDY[1], 1.0: "{}"}
        pairs = zip(np.repeat(np.arange(4), 4), QUALITIES.ravel(), strict=True)
        return [texts[float(quality)].format(asked[question].right[-1]) for question, quality in pairs]

    monkeypatch.setattr(emoji_questions, "decode", decode)
    variables = {"params": weights(LM, 0), "reference": weights(LM, 3)}
    rollout = module("llama_grpo").Rollout(grpo, group=4)
    batch = rollout(LM, variables, PROMPTS | {"index": index}, jax.random.key(0), 0)
    ended = check_rows(batch, 4)
    assert 0 < ended.sum() < 16
    np.testing.assert_array_equal(heard[0], np.asarray(batch["input_ids"])[:, P:])  # the texts are of these rows
    mean, deviation = QUALITIES.mean(1, keepdims=True), QUALITIES.std(1, ddof=1, keepdims=True)
    wanted = ((QUALITIES - mean) / (deviation + 1e-4)).ravel()
    np.testing.assert_allclose(batch["advantages"], wanted, rtol=1e-5, atol=1e-6)
    rows = [int(ended.argmax()), int((~ended).argmax()), 15]
    old = naive(batch, rows, variables["params"], 0.8)
    np.testing.assert_allclose(np.asarray(batch["old_log_probs"])[rows], old[rows], rtol=1e-4, atol=1e-5)

    update = jax.jit(lambda v: grpo(LM, v, batch, None, 0)[1].metrics)
    for reference, far in ((variables["params"], False), (variables["reference"], True)):
        metrics = update({**variables, "reference": reference})
        np.testing.assert_allclose(metrics["ratio"], 1, rtol=1e-5)
        assert metrics["kl"] > 1e-2 if far else abs(metrics["kl"]) < 1e-6
