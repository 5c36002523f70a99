"""Linear probe: multinomial logistic regression on frozen image features, fitted by L-BFGS from zero.

Radford et al. 2021, section 3.2 and appendix A.3, with a fixed L2 weight instead of a sweep, so that no split is
tuned on. Metric of a split "twemoji": twemoji/probe_subgroup_accuracy, chance beside it.

M training images, E width, G groups.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmjax.evals import features
from mmjax.nn.outputs import Result


@partial(jax.jit, static_argnames=("classes", "steps"))
def fit(x: jax.Array, labels: jax.Array, classes: int, l2: float, steps: int) -> dict[str, jax.Array]:
    """x [M E], labels [M] -> {"kernel" [E G], "bias" [G]} of least mean cross entropy + l2 / 2 |kernel|^2."""

    def objective(params):
        logits = x @ params["kernel"] + params["bias"]
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return cross_entropy + l2 / 2 * jnp.sum(params["kernel"] ** 2)

    solver, value_and_grad = optax.lbfgs(), optax.value_and_grad_from_state(objective)

    def step(carry, _):
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=objective)
        return (optax.apply_updates(params, updates), state), value

    zero = {"kernel": jnp.zeros((x.shape[1], classes)), "bias": jnp.zeros(classes)}
    (params, _), _ = jax.lax.scan(step, (zero, solver.init(zero)), length=steps)
    return params


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raises where labels [M] can't be learned as `classes` classes: numbers beyond them, or only one to be seen."""
    seen = np.unique(labels)
    if not len(seen) or seen[0] < 0 or seen[-1] >= classes:
        raise ValueError(f"labels must be in [0, {classes}), got {seen.tolist()}")
    if len(seen) == 1:
        raise ValueError(
            f"all {len(labels)} training rows are of class {seen[0]}, so nothing is to be told apart; give rows of at "
            "least two classes"
        )


def scores(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, l2: float = 1e-3, steps: int = 100
) -> np.ndarray:
    """A probe that is fitted on train [M E], labels [M], read at test [N E] -> [N G]. Columns are scaled to mean 0 and
    deviation 1 of the training rows first. NaN in them makes all scores NaN, which `features.ranks` counts as wrong."""
    if len(train) != len(labels):
        raise ValueError(f"each training row needs a label, got {len(train)} rows and {len(labels)} labels")
    check_labels(labels, classes)
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
    params = fit((train - mean) / deviation, labels, classes, l2, steps)
    return (test - mean) / deviation @ np.asarray(params["kernel"]) + np.asarray(params["bias"])


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    split: str
    train: str = "train"  # the split that the probe is fitted on
    l2: float = 1e-3  # on features that are scaled to mean 0 and deviation 1
    steps: int = 100  # of L-BFGS

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        splits, labels = features.grouped_images(model, variables, data, (self.train, self.split))
        (train, train_groups), (test, groups) = splits
        found = scores(train, train_groups, test, len(labels), self.l2, self.steps)
        return Result(features.accuracy_metrics(f"{self.split}/probe_subgroup_accuracy", found, groups))
