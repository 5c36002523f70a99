"""Optimizers as frozen dataclasses: `build(steps, params)` gives the optax transform, `rates(steps)` what to log."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from mmjax.nn.stack import LAYERS, per_layer
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


def cosine(first: float, last: float, steps: int, warmup: int = 0, start: float = 0.0) -> Schedule:
    """From `start` straight to `first` over `warmup` updates, then along half a cosine to `last` after `steps`.

    Counted as facebookresearch/dino and dinov2 count: the rise takes both of its ends, the fall never reaches its own.
    """

    def value(count: jax.Array) -> jax.Array:
        rising = start + (first - start) * count / max(warmup - 1, 1)
        done = jnp.clip((count - warmup) / max(steps - warmup, 1), 0, 1)
        return jnp.where(count < warmup, rising, last + (first - last) * DECAYS["cosine"](done))

    return value


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
class Muon:
    """Hidden matrices move along the orthogonal matrix next to their momentum, all else as with AdamW.

    Jordan et al. 2024, with the scale of Liu et al. 2025, arXiv:2502.16982, equation 4: an update is as large as Adam's
    mostly are, so that rates and decays of AdamW serve here too.
    """

    peak: float
    warmup: int = 0
    decay: str = "cosine"
    end: float = 0.0
    momentum: float = 0.95
    weight_decay: float = 0.0
    clip: float | None = None  # bound of the gradient's global norm
    mask: str = r"(kernel|embedding)$"  # decayed paths among all else
    matrices: str = rf"{LAYERS}/.*kernel$"  # of two axes, in and out, and one of the layers

    def rates(self, steps: int) -> dict[str, Schedule]:
        return {"lr": schedule(self.peak, steps, self.warmup, self.decay, self.end)}

    def build(self, steps: int, params: Any) -> optax.GradientTransformation:
        lr, axes = self.rates(steps)["lr"], optax.contrib.MuonDimensionNumbers(-2, -1)

        def as_large_as_adams(update: jax.Array) -> jax.Array:
            return update * 0.2 * max(update.shape[-2:]) ** 0.5

        turned = optax.chain(
            optax.contrib.scale_by_muon(
                beta=self.momentum, weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: axes, tree)
            ),
            optax.stateless(lambda updates, _: jax.tree.map(as_large_as_adams, updates)),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(lr),
        )
        adamw = AdamW(self.peak, self.warmup, self.decay, self.end, weight_decay=self.weight_decay, mask=self.mask)
        labels = trees.map_paths(lambda path, _: "turned" if re.search(self.matrices, path) else "adamw", params)
        muon = optax.partition({"turned": turned, "adamw": adamw.build(steps, params)}, labels)
        return optax.chain(optax.clip_by_global_norm(self.clip), muon) if self.clip is not None else muon


def clip_each(bound: float) -> optax.GradientTransformation:
    """Bounds each array's norm alone, layer by layer: DINO. Query, key and value count as one, as they do there."""
    return _clip(bound, lambda path: re.sub(r"/(query|key|value)/", "/", path), by_layer=True)


def clip_parts(bound: float) -> optax.GradientTransformation:
    """Bounds the norm of each of the model's parts, named by the first step of the paths: DINOv2."""
    return _clip(bound, lambda path: path.split("/")[0], by_layer=False)


def _clip(bound: float, group: Callable[[str], str], by_layer: bool) -> optax.GradientTransformation:
    """As torch.nn.utils.clip_grad_norm_ for each set of paths with one `group`; by_layer: in each layer of a stack."""

    def clip(gradients: Any, _: Any = None) -> Any:
        squares: dict[str, Any] = {}
        for path, x in trees.leaves(gradients).items():
            axes = range(1, x.ndim) if by_layer and LAYERS in path.split("/") else range(x.ndim)
            total = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(axes))
            squares[group(path)] = squares.get(group(path), 0.0) + total

        def one(path: str, x: jax.Array) -> jax.Array:
            share = jnp.minimum(1, bound / (jnp.sqrt(squares[group(path)]) + 1e-6))
            return x * share.reshape(share.shape + (1,) * (x.ndim - share.ndim)).astype(x.dtype)

        return trees.map_paths(one, gradients)

    return optax.stateless(clip)


def same_rate(path: str, layer: jax.Array | None) -> float:
    """All parameters learn equally fast."""
    return 1.0


@dataclasses.dataclass(frozen=True)
class LayerDecay:
    """Layers learn more slowly the further they are from the last: Clark et al. 2020, arXiv:2003.10555, with DINOv2's
    numbers. What stands before the first layer counts as a layer of its own, and patches have a factor more."""

    factor: float  # of each layer, relative to the next
    depth: int
    patches: float = 1.0

    def __call__(self, path: str, layer: jax.Array | None) -> jax.Array | float:
        if layer is not None:
            return self.factor ** (self.depth - layer)
        patches = self.patches if "patch_embed/" in path else 1.0
        return patches * (self.factor ** (self.depth + 1) if "_embed" in path else 1.0)


@dataclasses.dataclass(frozen=True)
class CosineAdamW:
    """AdamW as self-distillation is trained: the weight decay moves along a cosine too, and the last layer waits.

    The defaults are DINO's (Caron et al. 2021, arXiv:2104.14294; facebookresearch/dino, main_dino.py).
    """

    peak: float
    warmup: int = 0
    end: float = 1e-6  # the last rate
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    mask: str = r"(kernel|embed|gain)$"  # decayed paths: all but biases, norms and LayerScale
    clip: float | None = 3.0
    clipping: Callable = clip_each
    frozen: str = r"prototypes/"  # paths that do not move in the first `frozen_steps` updates
    frozen_steps: int = 0
    moments_wait: bool = True  # whether Adam's moments of these start only then (DINO), or at once (DINOv2)
    scale: Callable = same_rate  # (path, layer or None) -> factor of the rate

    def rates(self, steps: int) -> dict[str, Schedule]:
        decay = cosine(self.weight_decay, self.weight_decay_end, steps)
        return {"lr": cosine(self.peak, self.end, steps, self.warmup), "weight_decay": decay}

    def build(self, steps: int, params: Any) -> optax.GradientTransformation:
        adam, waits = optax.scale_by_adam(self.b1, self.b2, self.eps), re.compile(self.frozen)
        if self.moments_wait and self.frozen_steps:
            labels = trees.map_paths(lambda path, _: "late" if waits.search(path) else "now", params)
            adam = optax.partition({"late": _late(adam, self.frozen_steps), "now": adam}, labels)
        clip = self.clipping(self.clip) if self.clip is not None else optax.identity()
        return optax.chain(clip, adam, self._move(steps))

    def _move(self, steps: int) -> optax.GradientTransformation:
        """From Adam's direction to the change of each parameter: decay, rate, and who does not move yet."""
        lr, decay = self.rates(steps).values()

        def update(updates: Any, count: jax.Array, params: Any) -> tuple[Any, jax.Array]:
            flat = trees.leaves(params)

            def decayed(path: str, direction: jax.Array) -> jax.Array:
                return direction + decay(count) * flat[path] if re.search(self.mask, path) else direction

            def moved(path: str, direction: jax.Array, layer: jax.Array | None) -> jax.Array:
                change = -lr(count) * self.scale(path, layer) * direction
                return jnp.where(count < self.frozen_steps, 0.0, change) if re.search(self.frozen, path) else change

            return per_layer(moved)(trees.map_paths(decayed, updates)), count + 1

        return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)


def _late(inner: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """`inner` that sees nothing of the first `steps` updates."""

    def init(params: Any) -> tuple[jax.Array, Any]:
        return jnp.zeros((), jnp.int32), inner.init(params)

    def update(updates: Any, state: tuple[jax.Array, Any], params: Any = None) -> tuple[Any, tuple[jax.Array, Any]]:
        count, before = state
        changed, after = inner.update(updates, before, params)
        state = jax.tree.map(lambda new, old: jnp.where(count >= steps, new, old), after, before)
        return changed, (count + 1, state)

    return optax.GradientTransformation(init, update)


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
