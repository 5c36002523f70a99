"""PPO on answers of different lengths, computed by hand: token by token in plain NumPy, from the papers' formulas.

There is no padding there, and so no mask; gradients are finite differences in float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.models.reward import ActorCritic, RewardModel
from mmjax.nn.outputs import LMOutput
from mmjax.nn.sampling import Generated
from mmjax.objectives import log_probs, ppo, rollout

V, D, P = 7, 4, 3  # vocabulary, width, tokens of a prompt's row
LENGTHS = (5, 4, 2, 1)  # tokens of each answer
RNG = np.random.default_rng(1)
PROMPTS, ANSWERS = RNG.integers(0, V, (4, P)), RNG.integers(0, V, (4, max(LENGTHS)))  # whatever stands in the padding
PADDING = np.array([0, 1, 0, 2])  # of each prompt, on the left
VALUES = RNG.normal(size=(4, P + max(LENGTHS)))  # what the critic that saw the answers first expected, padding too
SCORES = RNG.normal(size=4)
BETA, GAMMA, LAM, CLIP, VALUE_CLIP, VALUE_WEIGHT, TEMPERATURE = 0.3, 0.97, 0.9, 0.15, 0.3, 0.2, 0.7


class Weights(NamedTuple):
    """logits = embed[token] @ head, value = critic[token] @ score: each token depends on the one before it alone."""

    embed: np.ndarray  # [V D]
    head: np.ndarray  # [D V]
    critic: np.ndarray  # [V D]
    score: np.ndarray  # [D]


NOW = Weights(RNG.normal(size=(V, D)), RNG.normal(size=(D, V)), RNG.normal(size=(V, D)), 0.3 * RNG.normal(size=D))
OLD = Weights(*(x + 0.1 * RNG.normal(size=x.shape) for x in NOW))
REFERENCE = Weights(*(x + 0.4 * RNG.normal(size=x.shape) for x in NOW))


# By hand


def tokens(row: int) -> list[tuple[int, int]]:
    """Each token of an answer, after the one before it."""
    row = [*PROMPTS[row], *ANSWERS[row, : LENGTHS[row]]]
    return [(int(row[i - 1]), int(row[i])) for i in range(P, len(row))]


def log_prob(weights: Weights, before: int, token: int) -> float:
    logits = weights.embed[before] @ weights.head / TEMPERATURE
    return logits[token] - np.log(np.exp(logits).sum())


def whitened(rows: list[list[float]], shift: bool) -> list[list[float]]:
    """All numbers together: mean 0 (or as it was) and variance 1, estimated with n - 1."""
    every = np.concatenate(rows)
    mean, deviation = every.mean(), np.sqrt(every.var(ddof=1) + 1e-8)
    return [[(x - mean) / deviation + (0 if shift else mean) for x in row] for row in rows]


def experience(whiten_rewards: bool) -> tuple[list[list[float]], list[list[float]]]:
    """Whitened advantages, and returns, of each answer."""
    rewards = [[-BETA * (log_prob(OLD, *one) - log_prob(REFERENCE, *one)) for one in tokens(row)] for row in range(4)]
    for row in range(4):
        rewards[row][-1] += SCORES[row]
    if whiten_rewards:
        rewards = whitened(rewards, shift=False)
    advantages, returns = [], []
    for row in range(4):
        values = [*VALUES[row, P - 1 : P - 1 + LENGTHS[row]], 0.0]
        later, found = 0.0, []
        for t in reversed(range(LENGTHS[row])):
            later = rewards[row][t] + GAMMA * values[t + 1] - values[t] + GAMMA * LAM * later
            found.insert(0, later)
        advantages.append(found)
        returns.append([a + v for a, v in zip(found, values[:-1], strict=True)])
    return whitened(advantages, shift=True), returns


def losses(weights: Weights, made: tuple, rows: range) -> dict[str, np.ndarray]:
    """Of each token of these rows."""
    found = {"policy": [], "value": [], "ratio": [], "moved": []}
    for row in rows:
        for t, (before, token) in enumerate(tokens(row)):
            advantage, gain, old = made[0][row][t], made[1][row][t], VALUES[row, P - 1 + t]
            ratio = np.exp(log_prob(weights, before, token) - log_prob(OLD, before, token))
            value = weights.critic[before] @ weights.score
            near = min(max(value, old - VALUE_CLIP), old + VALUE_CLIP)
            found["policy"].append(-min(ratio * advantage, min(max(ratio, 1 - CLIP), 1 + CLIP) * advantage))
            found["value"].append(0.5 * max((value - gain) ** 2, (near - gain) ** 2))
            found["ratio"].append(ratio)
            found["moved"].append(value - old)
    return {name: np.array(one) for name, one in found.items()}


def total(weights: Weights, made: tuple, rows: range) -> float:
    each = losses(weights, made, rows)
    return each["policy"].mean() + VALUE_WEIGHT * each["value"].mean()


def slopes(weights: Weights, made: tuple, rows: range, step: float = 1e-5) -> Weights:
    found = []
    for number, x in enumerate(weights):
        slope = np.zeros_like(x)
        for place in np.ndindex(x.shape):
            sides = []
            for sign in (1, -1):
                moved = x.copy()
                moved[place] += sign * step
                sides.append(total(weights._replace(**{Weights._fields[number]: moved}), made, rows))
            slope[place] = (sides[0] - sides[1]) / (2 * step)
        found.append(slope)
    return Weights(*found)


# Ours


class Toy(nn.Module):
    @nn.compact
    def __call__(self, input_ids, attention_mask=None, positions=None, segments=None):
        table = self.param("embed", nn.initializers.normal(), (V, D))
        hidden = table[input_ids]
        return LMOutput(hidden, hidden @ self.param("head", nn.initializers.normal(), (D, V)))

    @nn.nowrap
    def head(self, params):
        return params["head"]


MODEL = ActorCritic(Toy(), RewardModel(Toy()))


def params_of(weights: Weights) -> dict:
    one = Weights(*(jnp.asarray(x, jnp.float32) for x in weights))
    critic = {"language_model": {"embed": one.critic, "head": one.head}, "score": {"kernel": one.score[:, None]}}
    return {"policy": {"embed": one.embed, "head": one.head}, "critic": critic}


def weights_of(params: dict) -> Weights:
    critic = params["critic"]
    embed, head = params["policy"]["embed"], params["policy"]["head"]
    return Weights(embed, head, critic["language_model"]["embed"], critic["score"]["kernel"][:, 0])


@jax.jit
def rows_of_answers() -> dict:
    said = Generated(jnp.asarray(ANSWERS, jnp.int32), jnp.asarray(LENGTHS))
    return rollout.rows(jnp.asarray(PROMPTS, jnp.int32), jnp.arange(P) >= jnp.asarray(PADDING)[:, None], said)


def loss_of(whiten_rewards: bool, minibatches: int) -> ppo.PPO:
    return ppo.PPO(BETA, GAMMA, LAM, CLIP, VALUE_CLIP, VALUE_WEIGHT, TEMPERATURE, whiten_rewards, minibatches)


@pytest.mark.parametrize(("whiten_rewards", "minibatches", "step"), [(False, 1, 0), (True, 2, 0), (True, 2, 1)])
def test_padded_answers_by_hand(whiten_rewards, minibatches, step):
    loss, rows = loss_of(whiten_rewards, minibatches), rows_of_answers()
    mask = np.arange(P + max(LENGTHS)) - (P - 1)
    mask = (mask >= 0) & (mask < np.array(LENGTHS)[:, None])

    @jax.jit
    def prepare(rows):
        old, before = (
            log_probs.of_labels(Toy(), params_of(one)["policy"], rows, TEMPERATURE) for one in (OLD, REFERENCE)
        )
        scores, values = jnp.asarray(SCORES, jnp.float32), jnp.asarray(VALUES, jnp.float32)
        return loss.experience(old, before, values, scores, log_probs.counted(rows))

    @jax.jit
    def run(params, batch):
        take = lambda params: loss(MODEL, {"params": params}, batch, None, jnp.int32(step))  # noqa: E731
        (value, aux), gradients = jax.value_and_grad(take, has_aux=True)(params)
        return value, {**aux.metrics, "weight": aux.weight}, gradients

    made, by_hand = prepare(rows), experience(whiten_rewards)
    for name, wanted in zip(("advantages", "returns"), by_hand, strict=True):
        found = np.asarray(made[name])
        np.testing.assert_allclose(found[mask], np.concatenate(wanted), rtol=1e-4, atol=1e-5, err_msg=name)
        assert (found[~mask] == 0).all(), name

    seen = range(step, 4, minibatches)
    each = losses(NOW, by_hand, seen)
    beyond = np.abs(each["ratio"] - 1) > CLIP
    assert 0 < beyond.mean() < 1  # some clipped and some not
    assert 0 < (np.abs(each["moved"]) > VALUE_CLIP).mean() < 1
    value, said, gradients = run(params_of(NOW), {**rows, **made})
    np.testing.assert_allclose(value, total(NOW, by_hand, seen), rtol=1e-5)
    np.testing.assert_allclose(said["policy_loss"], each["policy"].mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(said["value_loss"], each["value"].mean(), rtol=1e-5)
    np.testing.assert_allclose(said["clip_fraction"], beyond.mean(), rtol=1e-5)
    assert said["weight"] == sum(LENGTHS[row] for row in seen)
    for name, found, wanted in zip(Weights._fields, weights_of(gradients), slopes(NOW, by_hand, seen), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max(), err_msg=name)
        assert np.abs(wanted).max() > 1e-3
