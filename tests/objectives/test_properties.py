"""What holds of the objectives whatever the numbers, and numbers computed by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models import llama
from mmjax.models.reward import ActorCritic, RewardModel
from mmjax.nn.sampling import Generated
from mmjax.objectives import dpo, grpo, log_probs, ppo, pretrain, reward, rollout, sft
from mmjax.ops.cross_entropy import IGNORED
from mmjax.train import accumulate
from mmjax.train.task import Task

TRUE = np.ones((1, 3), bool)


@pytest.fixture(scope="module")
def lm():
    model = llama.Llama(llama.LlamaConfig.tiny())
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    return model, jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(1), x.shape), params)


def rows(seed=0, batch=4, length=10):
    """Prompts of three tokens, padded on the left, and answers of one to six."""
    rng = np.random.default_rng(seed)
    input_ids = rng.integers(1, 64, (batch, length)).astype(np.int32)
    start, stop = rng.integers(0, 3, batch), rng.integers(5, length + 1, batch)
    at = np.arange(length)
    mask = (at >= start[:, None]) & (at < stop[:, None])
    return {"input_ids": input_ids, "attention_mask": mask, "spoken": mask & (at >= 4)}


# Gold numbers of the papers' formulas


def test_bradley_terry_by_hand():
    np.testing.assert_allclose(reward.bradley_terry(jnp.array(1.4), jnp.array(0.5)), 0.341153875, rtol=1e-6)


def test_dpo_by_hand():
    h = jnp.float32((-10 + 12) - (-11 + 11.5))
    for form, smoothing, wanted in (
        (dpo.sigmoid, 0.0, 0.620957048), (dpo.sigmoid, 0.1, 0.635957048), (dpo.ipo, 0.0, 12.25), (dpo.hinge, 0.0, 0.85),
    ):  # fmt: skip
        np.testing.assert_allclose(form(h, 0.1, smoothing), wanted, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(dpo.sigmoid)(h, 0.1), -0.1 / (1 + np.exp(0.15)), rtol=1e-6)


def test_advantages_by_hand():
    rewards, values = jnp.array([[0.0, 0.0, 1.0]]), jnp.array([[0.5, 0.6, 0.7]])
    found = ppo.advantages(rewards, values, TRUE, 1.0, 0.95)
    np.testing.assert_allclose(found, [[0.46575, 0.385, 0.3]], rtol=1e-6)
    np.testing.assert_allclose(found + values, [[0.96575, 0.985, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(ppo.whiten(found, TRUE), [[0.99134365, 0.01709213, -1.00843578]], rtol=1e-4)


def test_clipping_by_hand():
    ratio, advantage = jnp.array([1.5, 1.5, 0.5, 0.5]), jnp.array([1.0, -1.0, 1.0, -1.0])
    np.testing.assert_allclose(ppo.policy_loss(ratio, advantage, 0.2), [-1.2, 1.5, -0.5, 0.8], rtol=1e-6)
    np.testing.assert_allclose(ppo.value_loss(*jnp.array([1.0, 0.5, 2.0]), 0.2), 0.845, rtol=1e-6)


def test_divergences_by_hand():
    np.testing.assert_allclose(grpo.k3(jnp.array(-1.0), jnp.array(-1.2)), 0.018730753, rtol=1e-4)
    rewards = ppo.token_rewards(jnp.array([2.0]), jnp.array([[0.2, 0.1, 9.0]]), np.array([[True, True, False]]), 0.5)
    np.testing.assert_allclose(rewards, [[-0.1, 1.95, 0.0]], rtol=1e-6)


def test_group_advantages_by_hand():
    found = grpo.group_advantages(jnp.array([[1.0, 0.0, 0.0, 1.0], [0.5] * 4]))
    np.testing.assert_allclose(found[0], np.array([1, -1, -1, 1]) * 0.86587543, rtol=1e-6)
    assert (found[1] == 0).all()  # equal rewards teach nothing, and are not 0 / 0
    np.testing.assert_allclose(grpo.group_advantages(jnp.array([[3.0, 1.0]]), scale=False), [[1.0, -1.0]])


# Properties


@pytest.mark.slow
def test_a_policy_that_is_its_reference_has_loss_log_2(lm):
    model, params = lm
    batch = rows() | {f"rejected_{name}": x for name, x in rows(1).items()}
    value, aux = dpo.DPO()(model, {"params": params, "reference": params}, batch, None, 0)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert aux.metrics["chosen_reward"] == 0


def test_a_pair_without_answers_teaches_nothing_and_spoils_nothing(lm):
    model, params = lm
    reference = jax.tree.map(lambda x: 1.1 * x, params)
    batch = rows() | {f"rejected_{name}": x for name, x in rows(1).items()}
    for name in ("spoken", "rejected_spoken"):
        batch[name] = batch[name] & (np.arange(4) != 2)[:, None]

    @jax.jit
    def run(params, batch):
        def loss(params):
            return dpo.DPO(average=True)(model, {"params": params, "reference": reference}, batch, None, 0)[0]

        return jax.value_and_grad(loss)(params)

    value, gradients = run(params, batch)
    others, wanted = run(params, {name: x[[0, 1, 3]] for name, x in batch.items()})
    np.testing.assert_allclose(value, (3 * others + np.log(2)) / 4, rtol=1e-6)
    close = lambda x, y: np.testing.assert_allclose(x, 0.75 * y, rtol=1e-4, atol=1e-7)  # noqa: E731
    jax.tree.map(close, gradients, wanted)


@pytest.mark.parametrize("form", [dpo.hinge, dpo.ipo])
def test_a_form_that_would_ignore_label_smoothing_refuses_it(form):
    with pytest.raises(ValueError, match=f"{form.__name__} takes no label_smoothing, got 0.1.*sigmoid and robust"):
        dpo.DPO(label_smoothing=0.1, form=form)
    assert dpo.DPO(form=form).label_smoothing == 0


def experience(lm, batch):
    model, params = lm
    labels = {"labels": sft.labels_of(jnp.asarray(batch["input_ids"]), jnp.asarray(batch["spoken"]))}
    batch = {**batch, **labels}
    old, mask = log_probs.of_labels(model, params, batch), log_probs.counted(batch)
    values = jnp.asarray(np.random.default_rng(5).normal(size=mask.shape), jnp.float32)
    made = ppo.PPO().experience(old, old - 0.1, values, jnp.arange(len(mask), dtype=jnp.float32), mask)
    return batch | made, mask


@pytest.mark.slow
def test_before_the_first_update_the_ratio_is_one(lm):
    model, params = lm
    batch, _ = experience(lm, rows())
    actor = ActorCritic(model, RewardModel(llama.Llama(model.config)))
    critic = actor.critic.init(jax.random.key(2), batch["input_ids"])["params"]
    variables = {"params": {"policy": params, "critic": critic}}
    value, aux = ppo.PPO()(actor, variables, batch, None, jnp.int32(0))
    assert aux.metrics["approx_kl"] == 0
    assert aux.metrics["clip_fraction"] == 0
    np.testing.assert_allclose(aux.metrics["policy_loss"], 0, atol=1e-6)  # whitened advantages have mean 0
    group = batch | {"advantages": jnp.array([1.0, -1.0, 0.5, 0.0])}
    value, aux = grpo.GRPO()(model, {"params": params, "reference": params}, group, None, 0)
    np.testing.assert_allclose(aux.metrics["ratio"], 1, rtol=1e-6)
    assert aux.metrics["kl"] == 0


@pytest.mark.slow
def test_equal_rewards_give_no_gradient(lm):
    model, params = lm
    batch, _ = experience(lm, rows())
    batch["advantages"] = grpo.group_advantages(jnp.full((1, 4), 0.5))[0]
    loss = lambda params: grpo.GRPO(beta=0.0)(model, {"params": params}, batch, None, 0)[0]  # noqa: E731
    assert all((x == 0).all() for x in jax.tree.leaves(jax.grad(loss)(params)))


def test_what_stands_outside_of_answers_changes_nothing(lm):
    batch, mask = experience(lm, rows())
    other = {**rows(), "input_ids": np.where(rows()["attention_mask"], rows()["input_ids"], 63)}
    again, _ = experience(lm, other)
    assert not np.array_equal(batch["input_ids"], again["input_ids"])
    for name in ("old_log_probs", "advantages", "returns"):
        np.testing.assert_allclose(batch[name], again[name], rtol=1e-5, atol=1e-6)
        assert (np.asarray(batch[name])[~np.asarray(mask)] == 0).all()


def test_only_spoken_tokens_are_learned_and_the_end_is_one_of_them():
    spoken = jnp.array([[False, False, True, True, False, False, True]])  # two turns of an assistant
    labels = sft.labels_of(jnp.array([[1, 2, 3, 4, 5, 6, 7]]), spoken)
    np.testing.assert_array_equal(labels, [[IGNORED, 3, 4, IGNORED, IGNORED, 7, IGNORED]])


def test_rollouts_count_up_to_the_token_that_ends_them():
    said = Generated(jnp.array([[7, 8, 2, 0], [7, 8, 9, 9]]), jnp.array([3, 4]))
    made = rollout.rows(jnp.array([[0, 5], [4, 5]]), jnp.array([[False, True], [True, True]]), said)
    np.testing.assert_array_equal(made["input_ids"], [[0, 5, 7, 8, 2, 0], [4, 5, 7, 8, 9, 9]])
    np.testing.assert_array_equal(made["attention_mask"], [[0, 1, 1, 1, 1, 0], [1] * 6])
    np.testing.assert_array_equal(made["labels"], [[-100, 7, 8, 2, -100, -100], [-100, 7, 8, 9, 9, -100]])


def test_minibatches_are_all_rows_in_turns():
    loss = dataclasses.replace(ppo.PPO(), minibatches=2)
    parts = [loss.minibatch(jnp.arange(6), step) for step in range(3)]
    assert sorted([*parts[0].tolist(), *parts[1].tolist()]) == list(range(6))
    np.testing.assert_array_equal(parts[0], parts[2])


SPLIT = ["sft", "dpo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pretrain", "reward", "ppo"))]
SPLIT += [pytest.param(mean.__name__, marks=pytest.mark.slow) for mean in grpo.MEANS]


@pytest.mark.parametrize("name", SPLIT)
def test_micro_batches_give_the_gradients_of_the_batch(lm, name):
    model, params = lm
    batch, variables = rows(), {"params": params, "reference": jax.tree.map(lambda x: x * 1.1, params)}
    pairs = batch | {f"rejected_{key}": x for key, x in rows(1).items()}
    made, _ = experience(lm, batch)
    made["old_log_probs"] = made["old_log_probs"] + 0.1
    loss = {"pretrain": pretrain.loss, "sft": sft.loss, "reward": reward.Reward(0.1), "dpo": dpo.DPO()}.get(name)
    if name in ("reward", "dpo"):
        batch = pairs
    if name in ("ppo", "reward"):
        head = RewardModel(llama.Llama(model.config))
        critic = head.init(jax.random.key(2), batch["input_ids"])["params"]
        critic["score"]["kernel"] += 0.3  # it starts at zero
        model, variables["params"] = head, critic
    if name == "ppo":
        model, loss, batch = ActorCritic(lm[0], head), ppo.PPO(), made
        variables["params"] = {"policy": params, "critic": critic}
    if name.startswith("per_"):
        loss, batch = grpo.GRPO(mean=getattr(grpo, name)), made | {"advantages": jnp.array([1.0, -1.0, 0.5, 0.2])}
    task = Task(model, loss)
    batch = {key: jnp.asarray(x) for key, x in batch.items()}

    def run(gradients_of):
        inputs = variables["params"], variables, batch, jax.random.key(0), jnp.int32(0)
        return jax.jit(lambda *x: gradients_of(task, *x)[::2])(*inputs)

    value, gradients = run(accumulate.whole)
    parts, summed = run(accumulate.weighted(2))
    np.testing.assert_allclose(parts, value, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), summed, gradients)
    assert max(np.abs(x).max() for x in jax.tree.leaves(gradients)) > 1e-3


@pytest.mark.parametrize(
    ("form", "share"), [(dpo.robust, 0.5), (dpo.robust, 0.7), (dpo.sigmoid, 1.0), (dpo.sigmoid, -0.1)]
)
def test_a_share_of_wrong_preferences_that_makes_no_sense_is_refused(form, share):
    with pytest.raises(ValueError, match=f"label_smoothing is the share of preferences.*got {share}"):
        dpo.DPO(label_smoothing=share, form=form)
    assert dpo.DPO(label_smoothing=0.4, form=form).label_smoothing == 0.4
