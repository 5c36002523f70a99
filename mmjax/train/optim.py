"""Optimizers as frozen dataclasses: `build(steps, params)` gives the optax transform, `rates(steps)` what to log."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from mmjax.train import trees

Schedule = Callable[[jax.Array], jax.Array]  # number of updates made so far -> learning rate

DECAYS: dict[str, Callable[[jax.Array], Any]] = {  # share of the way from warm-up to the end -> share of the peak
    "cosine": lambda done: 0.5 * (1 + jnp.cos(jnp.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


class Optimizer(Protocol):
    def build(self, steps: int, params: Any) -> optax.GradientTransformation:
        """The transform for a run of `steps` updates of `params` (only their paths and shapes are read)."""

    def rates(self, steps: int) -> dict[str, Schedule]:
        """The learning rates, by the names they are logged under."""


def schedule(peak: float, steps: int, warmup: int = 0, decay: str = "cosine", end: float = 0.0) -> Schedule:
    """A straight rise to `peak` over `warmup` updates, then down to `end` * peak at the last of `steps`."""
    if decay not in DECAYS:
        raise ValueError(f"decay must be one of {', '.join(DECAYS)}, got {decay!r}")

    def rate(count: jax.Array) -> jax.Array:
        done = jnp.clip((count - warmup) / max(steps - warmup, 1), 0, 1)
        # Counted from 1, so that the first update is not lost to a rate of 0.
        return peak * jnp.minimum((count + 1) / max(warmup, 1), end + (1 - end) * DECAYS[decay](done))

    return rate


@dataclasses.dataclass(frozen=True)
class AdamW:
    """Adam with weight decay beside the gradient (Loshchilov & Hutter 2019, arXiv:1711.05101)."""

    peak: float  # highest learning rate
    warmup: int = 0  # updates until it
    decay: str = "cosine"  # a key of DECAYS
    end: float = 0.0  # last rate, as a share of the peak
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = None  # bound of the gradient's global norm
    # Decayed paths. By path and never by ndim: the biases of stacked layers are 2-D.
    mask: str = r"(kernel|embedding)$"

    def rates(self, steps: int) -> dict[str, Schedule]:
        return {"lr": schedule(self.peak, steps, self.warmup, self.decay, self.end)}

    def build(self, steps: int, params: Any) -> optax.GradientTransformation:
        adamw = optax.adamw(
            self.rates(steps)["lr"], self.b1, self.b2, self.eps, weight_decay=self.weight_decay,
            mask=lambda tree: trees.map_paths(lambda path, _: bool(re.search(self.mask, path)), tree),
        )  # fmt: skip
        return optax.chain(optax.clip_by_global_norm(self.clip), adamw) if self.clip is not None else adamw


@dataclasses.dataclass(frozen=True)
class Noam:
    """Adam as Vaswani et al. 2017, arXiv:1706.03762, section 5.3 ran it: a rise over `warmup` updates, then down with
    the root of their number, however long the run is. The name is its author's, Noam Shazeer."""

    width: int  # of the model: wider ones learn more slowly
    warmup: int = 4_000
    factor: float = 1.0  # tensor2tensor: 2 from version 2 on
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-9

    def rates(self, steps: int) -> dict[str, Schedule]:
        def rate(count: jax.Array) -> jax.Array:
            step = count + 1.0
            return self.factor * self.width**-0.5 * jnp.minimum(step**-0.5, step * self.warmup**-1.5)

        return {"lr": rate}

    def build(self, steps: int, params: Any) -> optax.GradientTransformation:
        return optax.adam(self.rates(steps)["lr"], self.b1, self.b2, self.eps)


@dataclasses.dataclass(frozen=True)
class SGD:
    """Gradient descent with Nesterov's momentum where `momentum` is above 0."""

    peak: float
    warmup: int = 0
    decay: str = "constant"
    end: float = 0.0
    momentum: float = 0.0

    def rates(self, steps: int) -> dict[str, Schedule]:
        return {"lr": schedule(self.peak, steps, self.warmup, self.decay, self.end)}

    def build(self, steps: int, params: Any) -> optax.GradientTransformation:
        return optax.sgd(self.rates(steps)["lr"], self.momentum or None, nesterov=self.momentum > 0)


@dataclasses.dataclass(frozen=True)
class Partitioned:
    """One optimizer for each part of the parameters, as a GAN needs: {path regex: optimizer}, the first match decides.

    `clip` of a part bounds the norm of that part alone.
    """

    parts: Mapping[str, Optimizer]

    def rates(self, steps: int) -> dict[str, Schedule]:
        named = [(regex, part.rates(steps)) for regex, part in self.parts.items()]
        return {f"{name}/{regex}": rate for regex, rates in named for name, rate in rates.items()}

    def build(self, steps: int, params: Any) -> optax.GradientTransformation:
        def label(path: str, _: Any) -> str:
            for number, regex in enumerate(self.parts):
                if re.search(regex, path):
                    return str(number)  # not the regex: labels stand in the paths that sharding rules read
            raise ValueError(f"no part of the optimizer matches params/{path}; its regexes are {list(self.parts)}")

        labels = trees.map_paths(label, params)
        transforms = {str(number): part.build(steps, params) for number, part in enumerate(self.parts.values())}
        return optax.partition(transforms, labels)


def with_copy(target: str, source: str = "params", init: Callable | None = None) -> Callable:
    """A Task.init that adds the collection `target`, a float32 copy of `source`: where an average starts."""
    from mmjax.train.task import init_model

    def init_with_copy(model: Any, rng: jax.Array, batch: Any, loaded: Any) -> dict:
        variables = (init or init_model)(model, rng, batch, loaded)
        return {**variables, target: jax.tree.map(lambda x: jnp.array(x, jnp.float32), variables[source])}

    return init_with_copy


def ema(source: str, target: str, decay: float | Schedule) -> Callable:
    """A Task.after_update: the collection `target` follows `source` as a moving average in float32."""

    def update(variables: dict, step: jax.Array) -> dict:
        rate = decay(step) if callable(decay) else decay
        average = jax.tree.map(
            lambda old, new: rate * old + (1 - rate) * new.astype(jnp.float32), variables[target], variables[source]
        )
        return {**variables, target: average}

    return update
