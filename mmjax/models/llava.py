"""LLaVA: a picture is a few hundred more words, and one small layer translates them.

Source: Liu et al. 2023, arXiv:2304.08485, section 4; LLaVA-1.5: Liu et al. 2023b, arXiv:2310.03744, section 3.

    images [B M H W 3] -vision-> [B M N D] -projector-> [B M N W] -.
    input_ids [B T] -embed-> [B T W] ------------------------------x-> [B T W] -language-> logits [B T V]

B batch, M pictures of a row at most, N tokens of a picture, D width of what sees, W of the language model, T tokens of
a row, V vocabulary. Where a picture stands, `input_ids` holds `image_token` N times (`expanded`), so that shapes are
static: the k-th image token of a row takes the k-th vector of the row's pictures. The authors keep one placeholder and
insert N vectors there while the program runs, which gives the same sequence.

Training has two stages (section 4.2): ALIGN, the projector alone on captions; INSTRUCT, projector and language model on
conversations. The loss counts what the assistant says. Several conversations about one picture may stand in one row
behind it, each blind to the others: `packed`. That is not in the paper, and saves reading the picture again.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from flax import struct

from mmjax.models import clip, llama, vit
from mmjax.models.features import MLPAdapter
from mmjax.nn.cache import KVCache
from mmjax.nn.cells import Beside
from mmjax.nn.embeddings import positions_of
from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.outputs import Aux, LMOutput
from mmjax.nn.stack import Compute
from mmjax.ops import images as image_ops
from mmjax.ops import masks
from mmjax.ops.cross_entropy import IGNORED, linear_nll, next_tokens

ALIGN = r"^projector/"  # Task.trainable of stage 1
INSTRUCT = r"^(projector|language)/"  # and of stage 2, where the tower stays as it is
LORA = r"^language/layers/.*kernel$"  # nn.lora.LoRA's paths in stage 2: all but the head; rank 128, alpha 256


# What sees: config -> module, images [I H W 3] -> [I N D], or what the projector reads of several towers


class ClipPatches(nn.Module):
    """Patches of the blocks that `config.layers` names, side by side, from CLIP. No norm was trained for them."""

    config: "LlavaConfig"

    def setup(self):
        self.tower = clip.VisionTower(self.config.vision, self.config.compute)
        nn.share_scope(self, self.tower)

    def __call__(self, images: jax.Array) -> jax.Array:  # [I H W 3] uint8, or float already normalised
        c = self.config
        out = self.tower(image_ops.to_float(images, c.image_mean, c.image_std), collect=True)
        tokens = [out.hidden_states[layer] for layer in c.layers]
        return jnp.concatenate([x if c.class_token else x[:, 1:] for x in tokens], axis=-1)


class ViTPatches(nn.Module):
    """Patches after the last norm of a plain ViT: where the tower was trained by what its patches show."""

    config: "LlavaConfig"

    def setup(self):
        self.tower = vit.ViT(self.config.vision, self.config.compute)
        nn.share_scope(self, self.tower)

    def __call__(self, images: jax.Array) -> jax.Array:  # [I H W 3] uint8, or float already normalised
        c = self.config
        images = image_ops.to_float(images, c.image_mean, c.image_std)
        return self.tower(images).last_hidden_state[:, c.vision.prefix :]


# From what is seen to the language model: config -> module, [... D] -> [... W]


def mlp(c: "LlavaConfig") -> nn.Module:
    """Two layers, LLaVA-1.5 (mlp2x_gelu)."""
    return MLPAdapter(c.language.width, c.language.compute.dtype, torch_linear)


def linear(c: "LlavaConfig") -> nn.Module:
    """One layer: equation 1 of the first paper."""
    return Linear(c.language.width, True, c.language.compute.dtype, torch_linear)


@dataclasses.dataclass(frozen=True)
class LlavaConfig:
    """The defaults are LLaVA-1.5's but for the two towers, which have to be said."""

    vision: vit.ViTConfig  # of CLIP
    language: llama.LlamaConfig
    image_token: int = 32_000  # id that stands where a vector of a picture does
    layers: tuple[int, ...] = (-2,)  # blocks of the tower that are read; -1 is the last
    class_token: bool = False  # whether it is read too
    see: Callable[["LlavaConfig"], nn.Module] = ClipPatches
    projector: Callable[["LlavaConfig"], nn.Module] = mlp
    image_length: int | None = None  # N, where `see` and `projector` give another number than the tower has patches
    image_mean: tuple[float, ...] = clip.OPENAI_MEAN  # what uint8 images are normalised by, RGB in [0, 1]
    image_std: tuple[float, ...] = clip.OPENAI_STD
    compute: Compute = Compute()  # of the tower

    def __post_init__(self):
        if not 0 <= self.image_token < self.language.vocab_size:
            raise ValueError(
                f"image_token must be an id of the vocabulary, 0 to {self.language.vocab_size - 1}, got "
                f"{self.image_token}; a language model without a spare id needs a larger table"
            )
        deep = [layer for layer in self.layers if not -self.vision.depth <= layer < self.vision.depth]
        if deep or not self.layers:
            raise ValueError(f"layers must name some of the tower's {self.vision.depth} blocks, got {self.layers}")

    @property
    def tokens_per_image(self) -> int:  # N
        return self.vision.num_patches + self.class_token if self.image_length is None else self.image_length

    @property
    def vocab_size(self) -> int:
        return self.language.vocab_size

    @property
    def length(self) -> int:
        return self.language.length

    @classmethod
    def tiny(cls) -> "LlavaConfig":
        vision = vit.ViTConfig(16, 8, width=16, depth=2, num_heads=2, hidden=32, epsilon=1e-5)
        return cls(vision, llama.LlamaConfig.tiny(), image_token=63)


def _published(vision: clip.CLIPConfig, language: llama.LlamaConfig, **fields) -> LlavaConfig:
    language = dataclasses.replace(language, vocab_size=32_064, length=4096, epsilon=1e-5)
    return LlavaConfig(vision.vision, language, **fields)


def llava_7b() -> LlavaConfig:  # section 4.1: one layer, 224 pixels; here with Vicuna 1.5's length
    return _published(clip.vit_l14(), llama.llama_7b(), projector=linear)


def llava_1_5_7b() -> LlavaConfig:  # LLaVA-1.5, table 2; the table has room for 64 more ids, as Hugging Face's
    return _published(clip.vit_l14_336(), llama.llama_7b())


def llava_1_5_13b() -> LlavaConfig:
    return _published(clip.vit_l14_336(), llama.llama_13b())


def small(vocab_size: int, image_token: int) -> LlavaConfig:
    """Not published: 0.9 M parameters that learn pictures of 64 pixels in minutes on a CPU, behind a plain ViT."""
    plain = (0.5, 0.5, 0.5)
    vision = vit.ViTConfig(
        64, 8, width=96, depth=3, num_heads=3, hidden=192, stem=(32, 64), class_token=False, pool=vit.patch_mean
    )
    language = llama.LlamaConfig(
        vocab_size, length=512, width=96, depth=3, num_heads=3, num_kv_heads=3, head_dim=32, hidden=256, tied=True,
        compute=Compute(unroll=True),
    )  # fmt: skip
    compute = Compute(unroll=True)
    return LlavaConfig(
        vision, language, image_token, see=ViTPatches, image_mean=plain, image_std=plain, compute=compute
    )


def of_size(size: str, vocab_size: int, image_token: int) -> LlavaConfig:
    """What experiments on scenes train: tiny and small."""
    made = small(vocab_size, image_token)
    if size == "small":
        return made
    vision = dataclasses.replace(made.vision, width=32, depth=2, num_heads=2, hidden=32, stem=())
    language = dataclasses.replace(llama.LlamaConfig.tiny(), vocab_size=vocab_size, length=256, tied=True)
    return {"tiny": dataclasses.replace(made, vision=vision, language=language, compute=Compute())}[size]


def computed(config: LlavaConfig, compute: Compute) -> LlavaConfig:
    """Both towers computed so, such as in bfloat16."""
    language = dataclasses.replace(config.language, compute=compute)
    return dataclasses.replace(config, compute=compute, language=language)


def check_places(at: jax.Array, count: int) -> None:
    """ValueError where a row [B T] has more places than the images of a row have tokens. Fewer are fine: a batch of
    mixed counts holds images that nobody looks at (`by_row`)."""
    found = np.asarray(at).sum(1)
    if found.max(initial=0) > count:
        row = int(found.argmax())
        raise ValueError(
            f"row {row} of input_ids has {found[row]} places for tokens of images, but its images have {count}; give "
            "each row the images that its text speaks of"
        )


def put(embeds: jax.Array, at: jax.Array, values: jax.Array) -> jax.Array:
    """embeds [B T W], at [B T] bool, values [B K W] -> [B T W]: in each row, the k-th True takes the k-th value.

    Values beyond the number of True are ignored; a True beyond the K-th gets zeros.
    """
    count = values.shape[1]
    rank = jnp.cumsum(at, axis=1) - 1  # [B T]
    taken = jnp.take_along_axis(values, jnp.clip(rank, 0, count - 1)[..., None], axis=1)
    taken = jnp.where((rank < count)[..., None], taken, 0)
    return jnp.where(at[..., None], taken.astype(embeds.dtype), embeds)


def packed(segments: jax.Array, attention_mask: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """segments [B T] int: 0 for what stands in front (the picture), then 1 1 1 2 2 ..., one number a conversation.

    -> positions [B T], counted on from the front in each conversation as if it were alone; and what may look at what,
    [B 1 T T] bool: all at the front, and each conversation at itself, never forward. attention_mask: False at padding.
    """
    front = (segments == 0) if attention_mask is None else (segments == 0) & attention_mask
    positions = positions_of(segments.shape, attention_mask, segments)
    positions = positions + jnp.where(segments == 0, 0, front.sum(1, keepdims=True))
    queries, keys = segments[:, :, None], segments[:, None]
    allowed = masks.Causal().dense(segments.shape[1], segments.shape[1])[:, 0] & ((queries == keys) | (keys == 0))
    allowed = allowed if attention_mask is None else allowed & attention_mask[:, None]
    return positions.astype(jnp.int32), allowed[:, None]


def read(
    language: llama.Llama, input_ids: jax.Array, splice: llama.Splice | None, attention_mask: jax.Array | None,
    positions: jax.Array | None, segments: jax.Array | None,
) -> LMOutput:  # fmt: skip
    """What the language model, bound, makes of a row; segments as in `packed`."""
    if segments is None:
        return language(input_ids, attention_mask, positions, splice=splice)
    counted, mask = packed(segments, attention_mask)
    return language.decode(input_ids, counted if positions is None else positions, mask, splice=splice)[0]


# On the host, before any of it runs


def expanded(input_ids: Sequence[int], image_token: int, count: int) -> list[int]:
    """Each image token `count` times: what the text of a chat template becomes."""
    return [token for one in input_ids for token in [one] * (count if one == image_token else 1)]


def by_row(config: LlavaConfig, input_ids: np.ndarray, images: np.ndarray) -> np.ndarray:
    """All pictures of a batch in the order of their places, [I H W 3] -> [B M H W 3]; black where a row has fewer.

    Raises ValueError where places and pictures don't match.
    """
    counts = images_in(config, input_ids)
    if sum(counts) != len(images):
        raise ValueError(
            f"the rows have room for {sum(counts)} images of {config.tokens_per_image} tokens ({counts} each), got "
            f"{len(images)} images; each needs its image tokens, and each place its image"
        )
    rows = np.zeros((len(counts), max(counts, default=0), *np.shape(images)[1:]), np.asarray(images).dtype)
    first = 0
    for row, count in enumerate(counts):
        rows[row, :count] = images[first : first + count]
        first += count
    return rows


def images_in(config: LlavaConfig, input_ids: np.ndarray) -> list[int]:
    """How many pictures each row [B T] has places for."""
    found = (np.asarray(input_ids) == config.image_token).sum(axis=1)
    if (found % config.tokens_per_image).any():
        row = int(np.argmax(found % config.tokens_per_image > 0))
        raise ValueError(
            f"row {row} has {int(found[row])} image tokens (id {config.image_token}), but an image takes "
            f"{config.tokens_per_image}; write them with `expanded`, and don't cut a row inside of an image"
        )
    return [int(n) for n in found // config.tokens_per_image]


@struct.dataclass
class LlavaOutput:
    last_hidden_state: jax.Array  # [B T W] after the last norm
    logits: jax.Array  # [B T V] float32, of the token that follows
    image_features: Any  # [B*M N D] before the projector; None without pictures


class Llava(nn.Module):
    config: LlavaConfig

    def setup(self):
        c = self.config
        self.vision, self.projector, self.language = c.see(c), c.projector(c), llama.Llama(c.language)

    def __call__(
        self,
        input_ids: jax.Array,
        images: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> LlavaOutput:
        """input_ids [B T] int; images [B M H W 3], or [B H W 3] with one a row, uint8 or float already normalised;
        attention_mask [B T] bool, False at padding; positions [B T] int, counted where None; segments: as in `packed`.
        """
        features = None if images is None else self.see(images)
        splice = None if images is None else self.splice(input_ids, features)
        out = read(self.language, input_ids, splice, attention_mask, positions, segments)
        return LlavaOutput(out.last_hidden_state, out.logits, features)

    def extend(
        self, input_ids: jax.Array, cache: KVCache, attention_mask: jax.Array | None = None,
        *, images: jax.Array | None = None,
    ) -> tuple[LMOutput, KVCache]:  # fmt: skip
        """As llama.Llama's; `images` as in a call, with the part of the text that they stand in."""
        splice = None if images is None else self.splice(input_ids, self.see(images))
        return self.language.extend(input_ids, cache, attention_mask, splice=splice)

    def see(self, images: jax.Array) -> Any:
        """[B M H W 3] or [B H W 3] -> [B*M N D], what `config.see` makes of each picture and the projector reads."""
        if images.ndim not in (4, 5):
            raise ValueError(f"images must be [B M H W 3] or [B H W 3], got {list(images.shape)}")
        return self.vision(images if images.ndim == 4 else rearrange(images, "b m h w c -> (b m) h w c"))

    def splice(self, input_ids: jax.Array, features: Any) -> llama.Splice:
        """What puts the pictures in their places, for the language model."""
        tokens, rows = self.projector(features), input_ids.shape[0]
        if tokens.shape[1] != self.config.tokens_per_image:
            raise ValueError(
                f"an image became {tokens.shape[1]} tokens, but the config says {self.config.tokens_per_image}; "
                "set image_length"
            )
        if tokens.shape[0] % rows:
            raise ValueError(f"each row has as many images, got {rows} rows and {tokens.shape[0]} images; see `by_row`")
        values, at = rearrange(tokens, "(b m) n w -> b (m n) w", b=rows), input_ids == self.config.image_token
        if not isinstance(at, jax.core.Tracer):  # under jit nobody can say; what makes batches has to (`expand`)
            check_places(at, values.shape[1])
        return partial(put, at=at, values=values)

    @nn.nowrap
    def init_cache(self, batch_size: int, length: int) -> KVCache:
        return llama.Llama(self.config.language).init_cache(batch_size, length)

    @nn.nowrap
    def head(self, params: dict) -> jax.Array:
        """[W V] what the last hidden state is multiplied by."""
        return llama.Llama(self.config.language).head(params["language"])


def loss(model: Llava, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple[jax.Array, Aux]:
    """-log p of what the assistant says, the mean over its tokens of the global batch; both stages.

    batch: input_ids [B T], spoken [B T] bool (the assistant wrote this token, the end of its turn included), images as
    in a call, and where there are any attention_mask [B T] and segments [B T].
    """
    labels = labels_of(batch)
    out = forward(model, variables, batch)
    value, count = answer_loss(model, variables, out.last_hidden_state, labels)
    return value, Aux({"loss": value}, weight=count)


def forward(model: Llava, variables: dict, batch: dict) -> LlavaOutput:
    """The model on a batch of `loss`."""
    inputs = (batch.get(name) for name in ("images", "attention_mask", "positions", "segments"))
    return model.apply(variables, batch["input_ids"], *inputs)


def answer_loss(
    model: Llava, variables: dict, hidden: jax.Array, labels: jax.Array, most: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """hidden [B T W], labels [B T] -> mean -log p of the labels that count, and how many do.

    most: no row has more labels that count; then only so many rows of logits are made. Small models spend half of their
    time on the logits of pictures and questions, which nobody reads. Where a row has more, the loss is NaN.
    """
    fits = True
    if most is not None:
        fits = ((labels != IGNORED).sum(1) <= most).all()
        chosen = jnp.argsort(labels == IGNORED, axis=1, stable=True)[:, :most]
        hidden = jnp.take_along_axis(hidden, chosen[..., None], axis=1)
        labels = jnp.take_along_axis(labels, chosen, axis=1)
    nll, count = linear_nll(hidden, model.head(variables["params"]), labels), (labels != IGNORED).sum()
    return jnp.where(fits, nll.sum() / jnp.maximum(count, 1), jnp.nan), count


@dataclasses.dataclass(frozen=True)
class Answers:
    """`loss` of rows in which the assistant says at most `most` tokens; see `answer_loss`. With what the patches are
    asked beside it, where a small tower would forget what it knew."""

    most: int
    cells: Beside | None = None

    def __call__(self, model: Llava, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> tuple:
        out = forward(model, variables, batch)
        value, count = answer_loss(model, variables, out.last_hidden_state, labels_of(batch), self.most)
        if self.cells is None:
            return value, Aux({"loss": value}, weight=count)
        return self.cells.added(value, {"text": value}, variables, out.image_features, batch)


def labels_of(batch: dict) -> jax.Array:
    """[B T] the id that follows where the assistant wrote it, else IGNORED."""
    following = next_tokens(batch["input_ids"], batch.get("attention_mask"), batch.get("segments"))
    return jnp.where(jnp.roll(batch["spoken"], -1, axis=1), following, IGNORED)
