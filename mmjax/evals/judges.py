"""Two small networks that judge pictures which other networks made; both look at 32 x 32 drawings on white.

    A, `ClassJudge`   learned from labels: which of 8 groups, of 95 subgroups, of 7 artists, and which concept
    B, `TwinJudge`    learned without classes: which two drawings, by two artists, show one thing (InfoNCE,
                      arXiv:1807.03748, on both sides, as in CLIP)

    images [B 32 32 3] uint8 -Features-> [B F] of length sqrt(F) -heads-> logits

B pictures, F features (the last layer before the heads), C concepts. They differ in what they learn from, in seed and
in augmentation, so that what both say of a generator is hardly an accident of either. Neither has seen the held-out
artist or the held-out concepts. No batch norm: what is said of a picture does not depend on its company.

`judge_a()` and `judge_b()` load the weights in `assets/`, which `experiments/judge_a.py` and `judge_b.py` train, and
`python -m experiments._judges --export` writes: float16 safetensors, with their sha256.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax import struct
from safetensors import numpy as safetensors

from mmjax.data import emoji, emoji_drawings
from mmjax.evals import features
from mmjax.nn.linear import Linear
from mmjax.nn.outputs import Answer, Aux, Request, Result
from mmjax.ops import contrastive, cross_entropy
from mmjax.ops import images as image_ops
from mmjax.report import pictures
from mmjax.report.page import CHANCE

ASSETS = Path(__file__).parent / "assets"
SIZE = 32  # side of the pictures
CONCEPTS = ".concepts"  # the tensor that is no parameter


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    widths: tuple[int, ...] = (40, 72, 104)  # channels on grids of side 16, 8, 4
    features: int = 64  # F
    groups: int = 8  # of the norms

    @classmethod
    def tiny(cls) -> "JudgeConfig":
        return cls((8, 8, 8), features=8, groups=4)


class Block(nn.Module):
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [B h w C] -> the same
        y = x
        for n in (1, 2):
            # Not the fast variance: E[x^2] - E[x]^2 loses the digits that epsilon keeps.
            y = jax.nn.relu(nn.GroupNorm(self.groups, use_fast_variance=False, name=f"norm{n}")(y))
            y = nn.Conv(x.shape[-1], (3, 3), name=f"conv{n}")(y)
        return x + y


class Features(nn.Module):
    """A residual network whose grids halve by taking 2 x 2 places as one, so that no detail is skipped."""

    config: JudgeConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:  # [B 32 32 3] uint8 -> float32 [B F] of length sqrt(F)
        if images.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"a judge looks at pictures [B {SIZE} {SIZE} 3], got {list(images.shape)}; resize them")
        c, x = self.config, image_ops.to_float(images, 0.5, 0.5)
        for n, width in enumerate(c.widths):
            x = rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=2, q=2)
            x = nn.Conv(width, (1, 1) if n else (3, 3), name=f"down{n}")(x)
            x = Block(c.groups, name=f"block{n}")(x)
        x = Linear(c.features, name="out")(jax.nn.relu(x).mean((1, 2)))
        # Of one length: how far two pictures are apart then means the same in every judge.
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)


@struct.dataclass
class Opinion:
    features: jax.Array  # [B F]
    group: jax.Array  # [B 8] logits, like the three below
    subgroup: jax.Array  # [B 95]
    artist: jax.Array  # [B 7]
    concept: jax.Array  # [B C]; of concepts that were held out, which no picture taught it, it says nothing


class ClassJudge(nn.Module):
    config: JudgeConfig
    counts: tuple[int, ...]  # of groups, subgroups, artists, concepts
    scale: float = 16.0  # of the cosines that are logits of concepts

    def setup(self):
        self.body = Features(self.config)
        self.group, self.subgroup, self.artist = (Linear(n) for n in self.counts[:3])
        self.concept = self.param("concept", nn.initializers.normal(1.0), (self.config.features, self.counts[3]))

    def __call__(self, images: jax.Array) -> Opinion:
        x = self.body(images)
        one = self.concept / jnp.linalg.norm(self.concept, axis=0)
        cosines = jnp.einsum("bf,fc->bc", x / self.config.features**0.5, one)
        return Opinion(x, self.group(x), self.subgroup(x), self.artist(x), self.scale * cosines)

    def encode_image(self, images: jax.Array) -> jax.Array:  # [B F]
        return self.body(images)

    def in_a_row(self, images: jax.Array) -> jax.Array:  # [B F+8+95+7+C]
        said = self(images)
        return jnp.concatenate([said.features, said.group, said.subgroup, said.artist, said.concept], -1)


class TwinJudge(nn.Module):
    config: JudgeConfig
    scale: float = 10.0  # of cosines, in the loss

    def setup(self):
        self.body = Features(self.config)

    def __call__(self, images: jax.Array) -> jax.Array:  # [B 32 32 3], or [B 2 32 32 3] of twins -> [B F], [B 2 F]
        if images.ndim == 4:
            return self.body(images)
        return rearrange(self.body(rearrange(images, "b v ... -> (b v) ...")), "(b v) f -> b v f", v=images.shape[1])

    def encode_image(self, images: jax.Array) -> jax.Array:
        return self.body(images)


def class_loss(
    model: ClassJudge, variables: dict, batch: dict, rng: jax.Array, step: jax.Array
) -> tuple[jax.Array, Aux]:
    said = model.apply(variables, batch["images"])
    parts = {
        name: cross_entropy.softmax_cross_entropy(getattr(said, name), batch[name]).mean()
        for name in emoji_drawings.Labels._fields
    }
    total = parts["group"] + parts["subgroup"] + parts["artist"] + parts["concept"]
    right = {f"{name}_right": jnp.mean(getattr(said, name).argmax(-1) == batch[name]) for name in parts}
    return total, Aux({"loss": total, **parts, **right}, weight=jnp.float32(len(batch["images"])))


def twin_loss(model: TwinJudge, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    one, other = jnp.moveaxis(model.apply(variables, batch["images"]) / model.config.features**0.5, 1, 0)
    # Labels only because a batch over the border of two epochs may hold a concept twice.
    total = contrastive.clip_loss(one, other, jnp.float32(model.scale), labels=batch["concept"])
    return total, Aux({"loss": total, "twins_cosine": jnp.mean(jnp.sum(one * other, -1))})


# --- asking a judge


class Judge(NamedTuple):
    """A trained judge, with what it is told apart by."""

    model: Any
    variables: Any
    sha256: str = ""  # of its file
    concepts: np.ndarray | None = None  # [C F] of `known_concepts`, in the file so that nobody waits for it


Both = Callable[[], tuple[Judge, Judge]]  # A and B; a function, as evals are compared and printed


@functools.cache
def judge_a() -> Judge:
    return load(ASSETS / "judge_a.safetensors", ClassJudge(JudgeConfig(), tuple(emoji_drawings.counts().values())))


@functools.cache
def judge_b() -> Judge:
    return load(ASSETS / "judge_b.safetensors", TwinJudge(JudgeConfig()))


def committed() -> tuple[Judge, Judge]:
    return judge_a(), judge_b()


def sha256s(judges: Both = committed) -> str:
    """What tells A and B apart from others, to stand beside their numbers."""
    return " ".join(one.sha256[:12] for one in judges())


def load(path: Path, model: nn.Module) -> Judge:
    """Weights that `save` wrote, as float32."""
    if not path.exists():
        raise FileNotFoundError(f"no judge in {path}; train it and write it: python -m experiments._judges --help")
    data = path.read_bytes()
    tensors, tree = safetensors.load(data), {}
    concepts = tensors.pop(CONCEPTS, None)
    for name, x in tensors.items():
        *folders, leaf = name.split("/")
        inner = functools.reduce(lambda tree, folder: tree.setdefault(folder, {}), folders, tree)
        inner[leaf] = jnp.asarray(x, jnp.float32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.uint8))
    if jax.tree.map(jnp.shape, tree) != jax.tree.map(jnp.shape, wanted["params"]):
        raise ValueError(f"{path} holds a judge of another shape than {model}; write it anew")
    return Judge(model, {"params": tree}, hashlib.sha256(data).hexdigest(), concepts)


def save(path: Path, model: nn.Module, params: Any) -> str:
    """Parameters as float16, and what concepts look like to them -> the file's sha256."""
    half = jax.tree.map(lambda x: np.asarray(x, np.float16), params)
    tensors = {"/".join(one.key for one in name): x for name, x in jax.tree.leaves_with_path(half)}
    rounded = Judge(model, {"params": jax.tree.map(lambda x: x.astype(np.float32), half)})
    tensors[CONCEPTS] = known_concepts(rounded, emoji_drawings.Labeled(SIZE)).astype(np.float32)
    data = safetensors.save(tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def look(judge: Judge, images: np.ndarray) -> np.ndarray:
    """uint8 [N 32 32 3] -> features, float32 [N F]."""
    return features.encode(judge.model, judge.variables, {"images": images}, "encode_image")


def opinions(judge: Judge, images: np.ndarray) -> Opinion:
    """Of a ClassJudge, on uint8 [N 32 32 3]: NumPy arrays, N rows each."""
    c = judge.model
    both = features.encode(c, judge.variables, {"images": images}, "in_a_row")
    return Opinion(*np.split(both, np.cumsum([c.config.features, *c.counts])[:-1], axis=1))


def prototypes(x: np.ndarray, concepts: np.ndarray, count: int) -> np.ndarray:
    """Features [N F] of drawings of concepts [N] -> sums of their directions, [count F]."""
    total = np.zeros((count, x.shape[1]), np.float64)
    np.add.at(total, concepts, features.unit(x))
    return total


def named(x: np.ndarray, concepts: np.ndarray, total: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """The place [N] of each picture's concept among all that have a prototype, 1 = nearest by cosine.

    x [N F]; total [C F] as `prototypes` gives it; own [N F]: what of a picture's own concept's sum to leave out, as
    a drawing must not be recognised by itself. A concept without anything left ranks last.
    """
    x, known = features.unit(x), np.linalg.norm(total, axis=1) > 1e-6
    cosines = np.where(known, x @ _directions(total).T, -np.inf)  # [N C]
    if own is not None:
        rest = total[concepts] - features.unit(own)
        length = np.linalg.norm(rest, axis=1)
        mine = np.sum(x * rest, 1) / np.maximum(length, 1e-3)
        # A single drawing less itself leaves no more than rounding.
        cosines[np.arange(len(x)), concepts] = np.where(length > 1e-3, mine, -np.inf)
    mine = cosines[np.arange(len(x)), concepts]
    beaten = cosines >= mine[:, None]
    beaten[np.arange(len(x)), concepts] = False
    return np.where(np.isfinite(mine), 1 + beaten.sum(1), known.sum())


def _directions(total: np.ndarray) -> np.ndarray:  # [C F]; 0 where there is none
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-6)


@dataclasses.dataclass(frozen=True)
class Opinions:
    """A ClassJudge's answers on real drawings: SPLIT/group_accuracy, subgroup_, artist_ where it may know the artist,
    and concept_ where it was taught the concept, each beside a blind guess."""

    split: str

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        images, labels = data.drawings(self.split)
        said, metrics = opinions(Judge(model, variables), images), {}
        kinds = ["group", "subgroup"]
        kinds += ["artist"] if labels.artist.max() < model.counts[2] else []
        kinds += ["concept"] if self.split in ("train", "validation") else []
        for kind in kinds:
            scores, right = getattr(said, kind), getattr(labels, kind)
            metrics |= features.accuracy_metrics(f"{self.split}/{kind}_accuracy", scores, right)
        return Result(metrics)


@dataclasses.dataclass(frozen=True)
class Names:
    """Which concept, among all that the training artists draw: SPLIT/name_R@1 and name_R@10, by the nearest mean of
    features of their drawings, the held-out concepts' too; a picture's own drawing is left out."""

    split: str

    def __call__(self, model: Any, variables: dict, data: Any, rng: jax.Array) -> Result:
        """`rng` is unused."""
        judge, (images, labels) = Judge(model, variables), data.drawings(self.split)
        x, metrics = look(judge, images), {}
        total, inside = known_concepts(judge, data), self.split in ("train", "concepts")
        places = named(x, labels.concept, total, own=x if inside else None)
        for k in (1, 10):
            metrics[f"{self.split}/name_R@{k}"] = float(np.mean(places <= k))
            metrics[f"{self.split}/name_R@{k}{CHANCE}"] = k / len(total)
        return Result(metrics)


def known_concepts(judge: Judge, data: Any) -> np.ndarray:
    """`prototypes` of the drawings of the splits "train" and "concepts", which are all concepts."""
    images, labels = zip(*(data.drawings(split) for split in ("train", "concepts")), strict=True)
    concepts = np.concatenate([one.concept for one in labels])
    return prototypes(look(judge, np.concatenate(images)), concepts, emoji_drawings.counts()["concept"])


@dataclasses.dataclass(frozen=True)
class Tell:
    """An Experiment's `sample`: the concepts whose drawings a picture is nearest to, and what a ClassJudge says."""

    shown: int = 5

    def __call__(self, model: Any, variables: dict, request: Request, data: Any, rng: jax.Array) -> Answer:
        """`rng` is unused."""
        if not request.images:
            raise ValueError("there is nothing to judge: give images")
        judge, pack = Judge(model, variables), emoji.pack()
        images = np.stack([np.asarray(pictures.thumbnail(image, SIZE)) for image in request.images])
        total = known_concepts(judge, data)
        cosines = features.unit(look(judge, images)) @ _directions(total).T
        lines = []
        for n, row in enumerate(cosines):
            best = np.argsort(-row, kind="stable")[: self.shown]
            lines += [f"picture {n + 1}", *(f"  {row[c]:+.3f}  {pack.names[c]}" for c in best)]
            if isinstance(model, ClassJudge):
                said = opinions(judge, images[n : n + 1])
                kinds = (said.group, pack.groups), (said.subgroup, pack.subgroups), (said.artist, emoji.ARTISTS)
                lines += ["  " + ", ".join(names[int(logits[0].argmax())] for logits, names in kinds)]
        return Answer("\n".join(lines))
