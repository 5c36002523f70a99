"""SigLIP: each pair of picture and sentence is asked by itself whether it belongs together.

Source: Zhai et al. 2023, arXiv:2303.15343, algorithm 1 and section 3; what the paper leaves open (towers, initial
values) from google-research/big_vision. SigLIP 2 is the same model, trained on more tasks: arXiv:2502.14786.

    images [B H W 3] -ViT, attention pooling-------------> [B E] --.
                                                                    x--> logits [B B] = scale * cosine + bias
    input_ids [B T]  -Transformer, last position, linear-> [B E] --'

B batch, H W pixels, T tokens, E width of the shared space, which is that of the vision tower.

The text tower looks both ways and sees its padding: rows are [words ..., end, end ...], always padded to the full
length, since what is read is the last position. A mask may be given, as in transformers; the published weights were
trained without. Their tokenizer (not here) is SentencePiece with 32,000 pieces: lower case, without ASCII punctuation,
single spaces, the end id 1 also as padding, 64 ids. SigLIP 2 reads Gemma's 256,000 pieces, also in lower case.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from mmjax.models import clip, vit
from mmjax.nn.attention import Attention
from mmjax.nn.blocks import PreNormBlock
from mmjax.nn.embeddings import Embed
from mmjax.nn.linear import Linear
from mmjax.nn.mlp import MLP, gelu_tanh
from mmjax.nn.norms import LayerNorm
from mmjax.nn.outputs import Aux
from mmjax.nn.stack import Compute, Stack
from mmjax.ops import contrastive, masks

# Section 3.2: nearly all pairs of a batch are negatives, which the bias accounts for from the start.
INITIAL_SCALE, INITIAL_BIAS = 10.0, -10.0


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the text tower; the defaults are those of B."""

    vocab_size: int = 32_000
    length: int = 64  # T
    width: int = 768  # W
    depth: int = 12  # L
    num_heads: int = 12
    hidden: int = 3072  # of the MLP
    activation: Callable = gelu_tanh
    epsilon: float = 1e-6  # of the norms


@dataclasses.dataclass(frozen=True)
class SigLIPConfig:
    """Two towers; published sizes are the functions below."""

    vision: vit.ViTConfig
    text: TextConfig
    compute: Compute = Compute()

    @property
    def embed_dim(self) -> int:  # E
        return self.vision.width

    @classmethod
    def tiny(cls) -> "SigLIPConfig":
        """Trains on a laptop CPU in seconds, for tests and notebooks."""
        text = TextConfig(vocab_size=512, length=16, width=16, depth=2, num_heads=2, hidden=32)
        return cls(tower(vit.ViTConfig.tiny()), text)


def tower(config: vit.ViTConfig) -> vit.ViTConfig:
    """SigLIP's vision tower in the size of a ViT: no class token, attention pooling, GELU's tanh form.

    Patches of 14 pixels do not fill 384, so the last 6 are dropped.
    """
    return dataclasses.replace(config, class_token=False, pool=vit.attention_pool, activation=gelu_tanh, cut=True)


def _published(vision: vit.ViTConfig, vocab_size: int) -> SigLIPConfig:
    """The text tower has the shape of the vision tower."""
    text = TextConfig(
        vocab_size, width=vision.width, depth=vision.depth, num_heads=vision.num_heads, hidden=vision.hidden
    )
    return SigLIPConfig(tower(vision), text)


# Vocabularies: 32,000 of SigLIP, 250,000 of its multilingual B, 256,000 of SigLIP 2


def b16(image_size: int = 224, vocab_size: int = 32_000) -> SigLIPConfig:  # also 256, 384, 512
    return _published(vit.vit_b(16, image_size), vocab_size)


def l16(image_size: int = 256, vocab_size: int = 32_000) -> SigLIPConfig:  # also 384
    return _published(vit.vit_l(16, image_size), vocab_size)


def so400m14(image_size: int = 384, vocab_size: int = 32_000) -> SigLIPConfig:  # also 224
    sizes = _published(vit.vit_so400m(14), vocab_size)
    return dataclasses.replace(sizes, vision=dataclasses.replace(sizes.vision, image_size=image_size))


def small(vocab_size: int, length: int, image_size: int = 32) -> SigLIPConfig:
    """Not published: 1.1 M parameters that learn from scratch in minutes on a CPU, the towers as in clip.small."""
    vision = vit.ViTConfig(image_size, 8, 128, depth=3, num_heads=4, hidden=256, stem=(32, 64))
    text = TextConfig(vocab_size, length, width=128, depth=2, num_heads=4, hidden=256)
    return SigLIPConfig(tower(vision), text)


@struct.dataclass
class SigLIPOutput:
    image_embeds: jax.Array  # [B E] of length 1
    text_embeds: jax.Array  # [C E] of length 1
    logit_scale: jax.Array  # [] what cosines are multiplied by, exp of the parameter
    logit_bias: jax.Array  # [] what is added

    @property
    def logits_per_image(self) -> jax.Array:  # [B C]; sigmoid of it: whether they belong together
        return self.logit_scale * self.image_embeds @ self.text_embeds.T + self.logit_bias


class TextTower(nn.Module):
    config: TextConfig
    embed_dim: int  # E
    compute: Compute = Compute()

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None, *, collect: bool = False
    ) -> clip.TextOutput:
        """input_ids [B T] int; attention_mask [B T] bool, True where a token may be looked at; None: everywhere.
        The pooler_output is [B E]."""
        c, dtype, init = self.config, self.compute.dtype, vit.Init()
        length = input_ids.shape[1]
        if length > c.length:
            raise ValueError(f"input_ids must hold at most {c.length} tokens a row, got {length}")
        x = Embed(c.vocab_size, c.width, dtype, vit.by_width, name="embed")(input_ids)
        x = x + self.param("pos_embed", init.position, (c.length, c.width))[:length].astype(dtype)

        norm = partial(LayerNorm, c.epsilon, dtype)
        attention = partial(Attention, c.num_heads, dtype, init.kernel, init.kernel)
        mlp = partial(MLP, c.hidden, c.activation, dtype, init.kernel, init.kernel, init.bias, init.bias)
        mask = None if attention_mask is None else masks.Padding(attention_mask.astype(bool))
        layers = Stack(partial(PreNormBlock, attention, mlp, norm), c.depth, self.compute, name="layers")
        x, hidden_states = layers(x, mask, collect=collect)
        x = norm(name="norm")(x)
        return clip.TextOutput(x, Linear(self.embed_dim, dtype=dtype, name="head")(x[:, -1]), hidden_states)


class SigLIP(nn.Module):
    config: SigLIPConfig

    def setup(self):
        c = self.config
        self.vision = vit.ViT(c.vision, c.compute)
        self.text = TextTower(c.text, c.embed_dim, c.compute)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(math.log(INITIAL_SCALE)), ())
        self.logit_bias = self.param("logit_bias", nn.initializers.constant(INITIAL_BIAS), ())

    def encode_image(self, images: jax.Array) -> jax.Array:
        """[B H W 3] uint8, or float already normalised -> [B E] of length 1."""
        return clip.normalise(self.vision(images).pooler_output)

    def encode_text(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """[B T] int, [B T] bool -> [B E] of length 1."""
        return clip.normalise(self.text(input_ids, attention_mask).pooler_output)

    def __call__(
        self, images: jax.Array, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> SigLIPOutput:
        image_embeds, text_embeds = self.encode_image(images), self.encode_text(input_ids, attention_mask)
        return SigLIPOutput(image_embeds, text_embeds, jnp.exp(self.logit_scale), self.logit_bias)


def embed(model: SigLIP, variables: dict, batch: dict, rng: jax.Array, step: jax.Array) -> dict:
    """Both embeddings of each row; `rng` and `step` are unused. First half of `loss`, and of Task.cached."""
    out = model.apply(variables, batch["images"], batch["input_ids"], batch.get("attention_mask"))
    return {"image": out.image_embeds, "text": out.text_embeds}


def loss_of_embeddings(
    model: SigLIP, variables: dict, embeddings: dict, batch: dict, step: jax.Array, *, implementation: str | None = None
) -> tuple[jax.Array, Aux]:
    """Algorithm 1 over the global batch. Rows of equal `label` are positives of each other."""
    scale, bias = jnp.exp(variables["params"]["logit_scale"]), variables["params"]["logit_bias"]
    total = contrastive.siglip_loss(
        embeddings["image"], embeddings["text"], scale, bias, labels=batch.get("label"), implementation=implementation
    )
    return total, Aux({"loss": total, "logit_scale": scale, "logit_bias": bias})


def loss(
    model: SigLIP, variables: dict, batch: dict, rng: jax.Array, step: jax.Array, *, implementation: str | None = None
) -> tuple[jax.Array, Aux]:
    """batch: images [B H W 3], input_ids [B T], and where there are any attention_mask [B T] and label [B].

    `implementation` is that of ops.contrastive.siglip_loss.
    """
    embeddings = embed(model, variables, batch, rng, step)
    return loss_of_embeddings(model, variables, embeddings, batch, step, implementation=implementation)
