"""CLIP: one space for pictures and sentences.

Source: Radford et al. 2021, arXiv:2103.00020, figure 3 and section 2; details that the paper leaves open (initial
values, the norm before the first block, the pooling rule) from openai/CLIP's model.py.

    images [B H W 3] -vision-> [B W] -projection-> [B E] --.
                                                            x--> logits [B B] = scale * cosine
    input_ids [B T]  -text---> [B W] -projection-> [B E] --'

B batch, H W pixels, N patches, T tokens, W width of a tower, L its layers, E width of the shared space.
Images are uint8, or float and already normalised by `image_mean` and `image_std`. Token rows are
[start, words ..., end, padding ...].
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mmjax.models import vit
from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PreNormBlock
from mmjax.nn.embeddings import Embed
from mmjax.nn.linear import Linear, torch_linear
from mmjax.nn.mlp import MLP, gelu, quick_gelu
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import contrastive, masks
from mmjax.ops import images as image_ops

INITIAL_SCALE, MAX_SCALE = 1 / 0.07, 100.0  # of exp(logit_scale), section 2.5
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in [0, 1]; openai/CLIP, clip.py
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
VISION_FIELDS = {  # of vit.ViTConfig, that this tower reads
    *("image_size", "patch_size", "width", "depth", "num_heads", "hidden", "activation", "epsilon", "stem", "resize")
}


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower; the defaults go with ViT-B."""

    vocab_size: int = 49408
    length: int = 77  # most tokens in a row, T
    width: int = 512  # W
    depth: int = 12  # L
    num_heads: int = 8
    hidden: int = 2048  # of the MLP
    activation: Callable = quick_gelu
    epsilon: float = 1e-5  # of the norms
    eos_id: int | None = None  # the id whose first position is read; None: the highest id of the row (OpenAI's rule)


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Two towers and the space they share; published sizes are the functions below."""

    vision: vit.ViTConfig
    text: TextConfig
    embed_dim: int = 512  # E
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # what uint8 images are normalised by, RGB in [0, 1]
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    compute: Compute = Compute()

    def __post_init__(self):
        vit.only(self.vision, VISION_FIELDS, "CLIP's vision tower")

    @classmethod
    def tiny(cls) -> "CLIPConfig":
        """Trains on a laptop CPU in seconds, for tests and notebooks."""
        vision = vit.ViTConfig(32, 8, width=16, depth=2, num_heads=2, hidden=32, activation=quick_gelu, epsilon=1e-5)
        text = TextConfig(vocab_size=512, length=16, width=16, depth=2, num_heads=2, hidden=32)
        return cls(vision, text, embed_dim=8)


def _published(image_size: int, patch_size: int, width: int, depth: int, text_width: int) -> CLIPConfig:
    """Table 20: heads are 64 wide, MLPs 4 times their tower, the shared space is as wide as the text tower."""
    vision = vit.ViTConfig(image_size, patch_size, width, depth, width // 64, 4 * width, quick_gelu, 1e-5)
    text = TextConfig(width=text_width, num_heads=text_width // 64, hidden=4 * text_width)
    return CLIPConfig(vision, text, text_width, image_mean=OPENAI_MEAN, image_std=OPENAI_STD)


def vit_b32() -> CLIPConfig:
    return _published(224, 32, width=768, depth=12, text_width=512)


def vit_b16() -> CLIPConfig:
    return _published(224, 16, width=768, depth=12, text_width=512)


def vit_l14() -> CLIPConfig:
    return _published(224, 14, width=1024, depth=24, text_width=768)


def vit_l14_336() -> CLIPConfig:
    return _published(336, 14, width=1024, depth=24, text_width=768)


def vit_h14() -> CLIPConfig:
    """LAION's, with GELU and heads of 80: Cherti et al. 2023, arXiv:2212.07143; open_clip's ViT-H-14."""
    c = _published(224, 14, width=1280, depth=32, text_width=1024)
    vision = dataclasses.replace(c.vision, num_heads=16, activation=gelu)
    return dataclasses.replace(c, vision=vision, text=dataclasses.replace(c.text, depth=24, activation=gelu))


def small(vocab_size: int, length: int, image_size: int = 32) -> CLIPConfig:
    """Not published: 1.0 M parameters that learn from scratch in minutes on a CPU.

    Convolutions make a token of each 8 x 8 pixels: what a run this short learns most from.
    """
    vision = vit.ViTConfig(image_size, 8, 128, depth=3, num_heads=4, hidden=256, activation=quick_gelu, stem=(32, 64))
    text = TextConfig(vocab_size, length, width=128, depth=2, num_heads=4, hidden=256)
    return CLIPConfig(vision, text, embed_dim=128)


@struct.dataclass
class CLIPOutput:
    image_embeds: jax.Array  # [B E] of length 1
    text_embeds: jax.Array  # [C E] of length 1
    logit_scale: jax.Array  # [] what cosines are multiplied by, exp of the parameter

    @property
    def logits_per_image(self) -> jax.Array:  # [B C]; computed where read, so that training need not hold it
        return self.logit_scale * self.image_embeds @ self.text_embeds.T


@struct.dataclass
class TextOutput:
    last_hidden_state: jax.Array  # [B T W] after the last norm
    pooler_output: jax.Array  # [B W] at the end-of-text token
    hidden_states: jax.Array | None  # [L B T W] after each block, where asked for with collect=True


def normalise(x: jax.Array) -> jax.Array:  # [... E] -> [... E] of length 1
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def end_of_text(input_ids: jax.Array, eos_id: int | None) -> jax.Array:  # [B T] -> [B] positions
    """The first end-of-text token. Files from before the id was configured mean the highest id (eos_id None)."""
    return jnp.argmax(input_ids if eos_id is None else input_ids == eos_id, axis=-1)


def uniform(bound: float) -> Callable:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def block(c: vit.ViTConfig | TextConfig, dtype: Any, query: Callable, out: Callable, up: Callable, down: Callable):
    """What makes a layer of either tower. MLP biases keep PyTorch's initial values in both."""
    bias = uniform(c.width**-0.5), uniform(c.hidden**-0.5)
    attention = partial(Attention, c.num_heads, dtype, query, out)
    mlp = partial(MLP, c.hidden, c.activation, dtype, up, down, *bias)
    return partial(PreNormBlock, attention, mlp, partial(LayerNorm, c.epsilon, dtype))


class VisionTower(nn.Module):
    """ViT with three twists: patches without a bias, a norm before the first block, the last norm on the class token.

    Its blocks start from PyTorch's defaults: openai/CLIP sets initial values in the text tower only.
    """

    config: vit.ViTConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, images: jax.Array, *, collect: bool = False) -> vit.ViTOutput:  # [B H W 3] float
        c, dtype = self.config, self.compute.dtype
        grid = vit.check_images(c, images)
        xavier = nn.initializers.variance_scaling(1 / 2, "fan_in", "uniform")  # of query, key and value as one kernel
        normal = nn.initializers.normal(c.width**-0.5)

        x = vit.Stem(c.stem, dtype, name="stem")(images)
        patch = c.patch_size // 2 ** len(c.stem)
        x = vit.PatchEmbed(c.width, patch, use_bias=False, dtype=dtype, kernel_init=torch_linear, name="patch_embed")(x)
        x = vit.with_tokens(self.param("class_embed", normal, (c.width,))[None], x)  # [B N+1 W]
        positions = self.param("pos_embed", normal, (c.num_patches + 1, c.width))
        x = x + vit.resized_positions(positions, c.resize, 1, *grid).astype(dtype)
        x = LayerNorm(c.epsilon, dtype, name="norm_pre")(x)
        layer = block(c, dtype, query=xavier, out=torch_linear, up=torch_linear, down=torch_linear)
        x, hidden = Stack(layer, c.depth, self.compute, name="layers")(x, collect=collect)
        return vit.ViTOutput(x, LayerNorm(c.epsilon, dtype, name="norm")(x[:, 0]), hidden)


class TextTower(nn.Module):
    config: TextConfig
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, *, collect: bool = False
    ) -> TextOutput:
        """input_ids [B T] int; attention_mask [B T] bool, True where a token counts."""
        c, dtype, normal = self.config, self.compute.dtype, nn.initializers.normal
        length = input_ids.shape[1]
        if length > c.length:
            raise ValueError(f"input_ids must hold at most {c.length} tokens a row, got {length}")
        x = Embed(c.vocab_size, c.width, dtype, normal(0.02), name="embed")(input_ids)
        x = x + self.param("pos_embed", normal(0.01), (c.length, c.width))[:length].astype(dtype)

        mask = masks.Causal() if attention_mask is None else masks.Causal() & masks.Padding(attention_mask)
        residual = normal(c.width**-0.5 * (2 * c.depth) ** -0.5)
        inner, hidden = normal(c.width**-0.5), normal((2 * c.width) ** -0.5)
        layer = block(c, dtype, query=inner, out=residual, up=hidden, down=residual)
        x, hidden_states = Stack(layer, c.depth, self.compute, name="layers")(x, mask, collect=collect)
        x = LayerNorm(c.epsilon, dtype, name="norm")(x)
        at = end_of_text(input_ids, c.eos_id)
        return TextOutput(x, jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0], hidden_states)


class CLIP(nn.Module):
    config: CLIPConfig

    def setup(self):
        c, dtype, normal = self.config, self.config.compute.dtype, nn.initializers.normal
        self.vision = VisionTower(c.vision, c.compute)
        self.text = TextTower(c.text, c.compute)
        self.vision_projection = Linear(c.embed_dim, False, dtype, normal(c.vision.width**-0.5))
        self.text_projection = Linear(c.embed_dim, False, dtype, normal(c.text.width**-0.5))
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(INITIAL_SCALE)), ())

    def encode_image(self, images: jax.Array) -> jax.Array:
        """[B H W 3] uint8, or float already normalised -> [B E] of length 1."""
        images = image_ops.to_float(images, mean=self.config.image_mean, std=self.config.image_std)
        return normalise(self.vision_projection(self.vision(images).pooler_output))

    def encode_patches(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B N W] float32, after the last block: no norm was trained for them."""
        return self._states(images)[-1, :, 1:].astype(jnp.float32)

    def attend(self, images: jax.Array) -> jax.Array:
        """[B H W 3] -> [B heads N], see vit.class_attention."""
        layers = self.vision.variables["params"]["layers"]
        return vit.class_attention(self.config.vision, layers, self._states(images))

    def _states(self, images: jax.Array) -> jax.Array:  # [B H W 3] -> [L B N+1 W]
        images = image_ops.to_float(images, mean=self.config.image_mean, std=self.config.image_std)
        return self.vision(images, collect=True).hidden_states

    def encode_text(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """[B T] int, [B T] bool -> [B E] of length 1."""
        return normalise(self.text_projection(self.text(input_ids, attention_mask).pooler_output))

    def __call__(self, images: jax.Array, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> CLIPOutput:
        image_embeds, text_embeds = self.encode_image(images), self.encode_text(input_ids, attention_mask)
        return CLIPOutput(image_embeds, text_embeds, jnp.exp(self.logit_scale))


def embed(model: CLIP, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> dict:
    """Both embeddings of each row; `rng` and `step` are unused. First half of `loss`, and of Task.cached."""
    out = model.apply(variables, batch["images"], batch["input_ids"], batch.get("attention_mask"))
    return {"image": out.image_embeds, "text": out.text_embeds}


def loss_of_embeddings(
    model: CLIP, variables: dict, embeddings: dict, batch: dict, step: jax.Array, *, implementation: str | None = None
) -> tuple[jax.Array, Aux]:
    """Figure 3's symmetric cross entropy over the global batch. Rows of equal `label` are positives of each other."""
    scale = jnp.exp(variables["params"]["logit_scale"])
    total = contrastive.clip_loss(
        embeddings["image"], embeddings["text"], scale, labels=batch.get("label"), implementation=implementation
    )
    return total, Aux({"loss": total, "logit_scale": scale})


def loss(
    model: CLIP, variables: dict, batch: dict, rng: jax.Array, step: jax.Array, *, implementation: str | None = None
) -> tuple[jax.Array, Aux]:
    """batch: images [B H W 3], input_ids [B T], and where there are any attention_mask [B T] and label [B].

    `implementation` is that of ops.contrastive.clip_loss.
    """
    embeddings = embed(model, variables, batch, rng, step)
    return loss_of_embeddings(model, variables, embeddings, batch, step, implementation=implementation)


def clamp_scale(variables: dict, step: jax.Array) -> dict:
    """Section 2.5, after each update: 1 <= exp(logit_scale) <= MAX_SCALE (the lower bound is open_clip's)."""
    params = variables["params"]
    return {**variables, "params": {**params, "logit_scale": jnp.clip(params["logit_scale"], 0, math.log(MAX_SCALE))}}


def zero_shot_weights(model: CLIP, variables: dict, token_batches: Iterable[dict]) -> jax.Array:
    """Section 3.1.4: a classifier from sentences, [C E]; image_embeds @ weights.T are cosines.

    token_batches: one dict for each prompt template, of input_ids [C T] and maybe attention_mask [C T]; row c is
    the template filled with class c.
    """
    embeds = [
        model.apply(variables, batch["input_ids"], batch.get("attention_mask"), method="encode_text")
        for batch in token_batches
    ]
    return normalise(jnp.mean(jnp.stack(embeds), axis=0))
