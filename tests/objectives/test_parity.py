"""Every objective is TRL's or transformers', value and gradients (goldens/make_objectives.py), through the trainer's
contract: a toy language model, logits = embed[ids] @ head."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.models.reward import ActorCritic, RewardModel
from mmjax.nn.outputs import LMOutput
from mmjax.objectives import dpo, grpo, log_probs, ppo, pretrain, reward, sft
from mmjax.ops.cross_entropy import IGNORED

GOLDEN = dict(np.load(Path(__file__).parents[1] / "goldens" / "objectives.npz"))
V, D = GOLDEN["policy/embed"].shape
P = 3  # prompt tokens of a row
IDS, MASK, SPOKEN = GOLDEN["input_ids"], GOLDEN["attention_mask"].astype(bool), GOLDEN["spoken"].astype(bool)
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Toy(nn.Module):
    @nn.compact
    def __call__(self, input_ids, attention_mask=None, positions=None, segments=None):
        table = self.param("embed", nn.initializers.normal(), (V, D))
        head = self.param("head", nn.initializers.normal(), (D, V))
        hidden = table[input_ids]
        return LMOutput(hidden, hidden @ head)

    @nn.nowrap
    def head(self, params):
        return params["head"]


def weights(name):
    return {one: jnp.asarray(GOLDEN[f"{name}/{one}"]) for one in ("embed", "head")}


def check(name, loss, model, variables, batch, places=None):
    """places: path of a gradient -> its name in the golden."""
    batch = {key: jnp.asarray(x) for key, x in batch.items()}

    def value(params):
        total, aux = loss(model, {**variables, "params": params}, batch, None, jnp.int32(0))
        return total, aux

    (total, aux), gradients = jax.value_and_grad(value, has_aux=True)(variables["params"])
    np.testing.assert_allclose(total, GOLDEN[f"{name}/value"], **CLOSE)
    for path, wanted in (places or {"embed": "embed", "head": "head"}).items():
        found = gradients
        for key in path.split("/"):
            found = found[key]
        np.testing.assert_allclose(np.squeeze(found), GOLDEN[f"{name}/{wanted}"], **CLOSE, err_msg=path)
        assert np.abs(found).max() > 1e-3
    return aux


def test_pretraining_is_transformers():
    batch = {"input_ids": IDS, "attention_mask": MASK}
    aux = check("pretrain", pretrain.loss, Toy(), {"params": weights("policy")}, batch)
    assert aux.weight == MASK.sum() - len(IDS)


def test_fine_tuning_counts_what_was_spoken():
    batch = {"input_ids": IDS, "attention_mask": MASK, "spoken": SPOKEN}
    aux = check("sft", sft.loss, Toy(), {"params": weights("policy")}, batch)
    assert aux.weight == SPOKEN.sum()


def pairs(*names):
    """Rows 0 and 1 are preferred to rows 2 and 3."""
    arrays = {"input_ids": IDS, "attention_mask": MASK, "spoken": SPOKEN}
    return {f"{side}{n}": arrays[n][rows] for n in names for side, rows in (("", slice(2)), ("rejected_", slice(2, 4)))}


@pytest.mark.parametrize(("name", "center"), [("reward", 0.0), ("reward_margin", 0.05)])
def test_the_reward_model_is_trl(name, center):
    model = RewardModel(Toy())
    params = {"language_model": weights("policy"), "score": {"kernel": jnp.asarray(GOLDEN["score"])[:, None]}}
    batch = pairs("input_ids", "attention_mask")
    if name == "reward_margin":
        batch["margin"] = GOLDEN["margin"]
    places = {"language_model/embed": "embed", "score/kernel": "score"}
    check(name, reward.Reward(center), model, {"params": params}, batch, places)


@pytest.mark.parametrize(
    ("form", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.1), ("robust", 0.1), ("hinge", 0.0), ("ipo", 0.0)]
)
def test_dpo_is_trl(form, smoothing):
    loss = dpo.DPO(0.1, smoothing, average=form == "ipo", form=getattr(dpo, form))
    variables = {"params": weights("policy"), "reference": weights("reference")}
    check(f"dpo/{form}/{smoothing}", loss, Toy(), variables, pairs("input_ids", "attention_mask", "spoken"))


def answers(temperature):
    """Rows with the labels of their answers and what the policy that wrote them thought of each token."""
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": sft.labels_of(jnp.asarray(IDS), jnp.asarray(SPOKEN))}
    return batch | {"old_log_probs": log_probs.of_labels(Toy(), weights("old"), batch, temperature)}


@pytest.mark.parametrize(
    ("name", "mean"), [("grpo", grpo.per_answer), ("dapo", grpo.per_token), ("dr_grpo", grpo.per_length)]
)
def test_grpo_is_trl(name, mean):
    loss = grpo.GRPO(beta=0.04, clip=0.2, clip_high=0.28, temperature=0.7, longest=IDS.shape[1] - P, mean=mean)
    variables = {"params": weights("policy"), "reference": weights("reference")}
    check(f"grpo/{name}", loss, Toy(), variables, answers(0.7) | {"advantages": GOLDEN["advantages"]})


def placed(x):
    """[B R] at the tokens -> [B T] where each is predicted."""
    return jnp.pad(jnp.asarray(x), ((0, 0), (P - 1, 1)))


PPO = ppo.PPO(beta=0.05, gamma=0.97, lam=0.95, clip=0.2, value_clip=0.2, value_weight=0.1)
CRITIC = {
    "policy/embed": "embed",
    "policy/head": "head",
    "critic/language_model/embed": "critic",
    "critic/score/kernel": "score",
}


def actor_critic():
    critic = {"language_model": weights("policy"), "score": {"kernel": jnp.asarray(GOLDEN["score"])[:, None]}}
    return {"params": {"policy": weights("policy"), "critic": critic}, "reference": weights("reference")}


def test_ppo_is_trl_from_rollout_to_gradients():
    rows = {"input_ids": IDS, "attention_mask": np.ones_like(MASK)}
    spoken = np.arange(IDS.shape[1]) >= P  # every answer of full length
    rows["labels"] = sft.labels_of(jnp.asarray(IDS), jnp.broadcast_to(spoken, IDS.shape))
    old, reference = (log_probs.of_labels(Toy(), weights(name), rows) for name in ("old", "reference"))
    values, scores = placed(GOLDEN["ppo/full/old_values"]), jnp.asarray(GOLDEN["ppo/full/scores"])
    mask = rows["labels"] != IGNORED
    made = PPO.experience(old, reference, values, scores, mask)
    for name in ("advantages", "returns"):
        np.testing.assert_allclose(made[name], placed(GOLDEN[f"ppo/full/{name}"]), **CLOSE)
    check("ppo/full", PPO, ActorCritic(Toy(), RewardModel(Toy())), actor_critic(), rows | made, CRITIC)


def test_the_parts_of_ppo_are_trl_with_padded_answers():
    """TRL lets the score come with the token after the last; its masks for that are handed to our functions."""
    rows, golden = (
        answers(1.0),
        {n: GOLDEN[f"ppo/padded/{n}"] for n in ("scores", "old_values", "advantages", "returns")},
    )
    mask = rows["labels"] != IGNORED
    longer = mask | (jnp.roll(mask, 1, axis=1) & (jnp.arange(IDS.shape[1]) < IDS.shape[1] - 1))
    reference = log_probs.of_labels(Toy(), weights("reference"), rows)
    values = jnp.where(longer, placed(golden["old_values"]), 0)
    made = ppo.token_rewards(jnp.asarray(golden["scores"]), rows["old_log_probs"] - reference, longer, 0.05)
    made = ppo.whiten(made, longer, shift_mean=False)
    advantages = ppo.advantages(made, values, longer, 0.97, 0.95)
    np.testing.assert_allclose(advantages + values, placed(golden["returns"]), **CLOSE)
    white = ppo.whiten(advantages, mask)
    np.testing.assert_allclose(white, placed(golden["advantages"]), **CLOSE)

    new = log_probs.of_labels(Toy(), weights("policy"), rows)
    ratio = jnp.exp(new - rows["old_log_probs"])
    policy_loss = log_probs.masked_mean(ppo.policy_loss(ratio, white, 0.2), mask)
    np.testing.assert_allclose(policy_loss, GOLDEN["ppo/padded/policy_loss"], **CLOSE)
    critic = actor_critic()["params"]["critic"]
    now = RewardModel(Toy()).apply({"params": critic}, jnp.asarray(IDS), jnp.asarray(MASK)).values
    losses = ppo.value_loss(now, values, advantages + values, 0.2)
    np.testing.assert_allclose(log_probs.masked_mean(losses, longer), GOLDEN["ppo/padded/value_loss"], **CLOSE)
