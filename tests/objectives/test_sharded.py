"""The objectives of preferences and rollouts on a mesh of eight devices: what one device computes.

Rows differ everywhere: in tokens, in where padding stands and how much, in how long answers are, and in what they are
worth, so that rows that trade places or means of means are noticed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close, close_trees

from mmjax.models import llama
from mmjax.models.reward import ActorCritic, RewardModel
from mmjax.objectives import dpo, grpo, log_probs, ppo, reward, sft
from mmjax.parallel import rules
from mmjax.parallel.mesh import MeshShape, batch_sharding

CONFIG = llama.LlamaConfig(32, 24, 16, 2, num_heads=4, num_kv_heads=2, head_dim=4, hidden=24)
LM, CRITIC = llama.Llama(CONFIG), RewardModel(llama.Llama(CONFIG))
ROWS, T, P = 16, 10, 4
WHITE = dataclasses.replace(ppo.PPO(), whiten_rewards=True)
LOSSES = {
    "reward": (reward.Reward(center=0.1),),
    "dpo": (dpo.DPO(0.5),),
    "ppo": (WHITE,),
    "ppo in 2 minibatches": (dataclasses.replace(WHITE, minibatches=2),),
    "grpo": tuple(grpo.GRPO(mean=mean, longest=T - P) for mean in grpo.MEANS),
}
SHARES = np.array([1.0, -0.7, 1.9])  # losses of one program are added up so, and differentiated together


def rows(rng) -> dict:
    """Prompts padded on the left, answers of 1 to 6 tokens padded on the right."""
    ids = rng.integers(0, 32, (ROWS, T)).astype(np.int32)
    assert len(np.unique(ids, axis=0)) == ROWS
    at, start, stop = np.arange(T), rng.integers(0, P, (ROWS, 1)), rng.integers(P + 1, T + 1, (ROWS, 1))
    mask = (at >= start) & (at < stop)
    return {"input_ids": ids, "attention_mask": mask, "spoken": mask & (at >= P)}


def random_like(rng, shapes, scale):
    return jax.tree.map(lambda x: scale * rng.normal(size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def given():
    """Rows as each loss wants them, and the parameters of two language models and a critic."""
    rng = np.random.default_rng(0)
    one, other = rows(rng), rows(rng)
    shapes = [jax.eval_shape(model.init, jax.random.key(0), one["input_ids"])["params"] for model in (LM, LM, CRITIC)]
    policy, reference, critic = (random_like(rng, one, 0.3) for one in shapes)
    labels = np.asarray(sft.labels_of(jnp.asarray(one["input_ids"]), jnp.asarray(one["spoken"])))
    answers = {"input_ids": one["input_ids"], "attention_mask": one["attention_mask"], "labels": labels}
    answers["noise"] = 0.3 * rng.normal(size=labels.shape).astype(np.float32)  # how far the policy that wrote was
    answers["old_values"] = rng.normal(size=labels.shape).astype(np.float32)
    answers["scores"] = rng.normal(size=ROWS).astype(np.float32)
    pairs = one | {f"{reward.REJECTED}{name}": x for name, x in other.items()}
    return {"pairs": pairs, "answers": answers}, {"policy": policy, "reference": reference, "critic": critic}


def wired(name: str, given: tuple) -> tuple:
    """The variables and the batch."""
    batches, params = given
    if name == "reward":
        return {"params": params["critic"]}, batches["pairs"]
    if name.startswith("ppo"):
        both = {"params": {"policy": params["policy"], "critic": params["critic"]}, "reference": params["reference"]}
        return both, batches["answers"]
    variables = {"params": params["policy"], "reference": params["reference"]}
    return variables, batches["pairs" if name == "dpo" else "answers"]


def prepared(loss, variables, batch: dict) -> dict:
    """What a rollout adds to its rows: of all of them, as everything that looks across the batch does."""
    if "noise" not in batch:
        return batch
    of_ppo = isinstance(loss, ppo.PPO)
    params = variables["params"]["policy"] if of_ppo else variables["params"]
    mask = log_probs.counted(batch)
    old = jnp.where(mask, log_probs.of_labels(LM, params, batch) + batch["noise"], 0)
    if of_ppo:
        reference = log_probs.of_labels(LM, variables["reference"], batch)
        return batch | loss.experience(old, reference, batch["old_values"], batch["scores"], mask)
    advantages = grpo.group_advantages(batch["scores"].reshape(-1, 4)).ravel()
    return batch | {"old_log_probs": old, "advantages": advantages}


@functools.cache
def compiled(name: str):
    """(variables, batch, step) -> (values, what the metrics and `experience` say), gradients."""
    losses = LOSSES[name]
    model = {"reward": CRITIC, "dpo": LM, "grpo": LM}.get(name, ActorCritic(LM, CRITIC))

    def run(variables, batch, step):
        batch = prepared(losses[0], variables, batch)

        def value_of(params):
            values, said = [], {one: batch[one] for one in ("advantages", "returns") if one in batch}
            for number, loss in enumerate(losses):
                value, aux = loss(model, {**variables, "params": params}, batch, None, step)
                values.append(value)
                said |= {f"{one} {number}": x for one, x in {**aux.metrics, "weight": aux.weight}.items()}
            return SHARES[: len(values)] @ jnp.stack(values), (jnp.stack(values), said)

        (_, said), gradients = jax.value_and_grad(value_of, has_aux=True)(variables["params"])
        return said, gradients

    return jax.jit(run)


SLOW = ("dpo", "ppo", "ppo in 2 minibatches", "grpo")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in LOSSES])
def test_values_and_gradients_are_those_of_one_device(given, name):
    run, (variables, batch) = compiled(name), wired(name, given)
    steps = range(getattr(LOSSES[name][0], "minibatches", 1))
    alone = [jax.device_get(run(variables, batch, jnp.int32(step))) for step in steps]
    mesh = MeshShape(data=2, fsdp=2, tensor=2).build()
    placed = jax.device_put(variables, rules.shardings(mesh, rules.DEFAULT, variables))
    split = [x for x in jax.tree.leaves(placed) if not x.sharding.is_fully_replicated]
    assert len(split) > len(jax.tree.leaves(placed)) / 2
    with jax.set_mesh(mesh):
        rows = jax.device_put(batch, batch_sharding(mesh, ROWS))
        for step, ((values, said), gradients) in zip(steps, alone, strict=True):
            found = jax.device_get(run(placed, rows, jnp.int32(step)))
            close(f"loss of {name}", found[0][0], values, relative=1e-5)
            for one, wanted in said.items():
                close(f"{one} of {name}", found[0][1][one], wanted, relative=1e-5)
            close_trees(found[1], gradients, relative=1e-4)
            assert max(np.abs(x).max() for x in jax.tree.leaves(gradients)) > 1e-3
    several = np.concatenate([values for (values, _), _ in alone])
    assert len(set(several.round(3).tolist())) == len(several)  # means and minibatches differ from each other


def test_the_loss_of_local_batches_is_another(given):
    """PPO's means are over the answers' tokens of all rows, and so is what whitens rewards and advantages."""
    run, (variables, batch) = compiled("ppo"), wired("ppo", given)
    value = run(variables, batch, jnp.int32(0))[0][0][0]
    parts = [{name: x[i : i + 4] for name, x in batch.items()} for i in range(0, ROWS, 4)]
    local = [run(variables, part, jnp.int32(0))[0][0][0] for part in parts]
    assert abs(np.mean(local) - value) > 1e-3
