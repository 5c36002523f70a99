"""Mixture of Features: CLIP says what is in a picture, DINOv2 how it looks, and a language model reads both.

Source: Tong et al. 2024, arXiv:2401.06209, section 4 ("Eyes Wide Shut"); Interleaved-MoF as in tsb0601/MMVP
(llava_arch.py, multimodal_encoder, multimodal_projector), which publishes no code of Additive-MoF.

    images [B H W 3] -CLIP---> layer before the last [B N D] -.
                                                               x--> additive     alpha c + (1 - alpha) d [B N H]
                     -DINOv2-> last layer, no norm   [B N E] -'     interleaved  c0 d0 c1 d1 ...        [B 2N H]

B batch, N patches in rows from the top left, D E widths of the towers, H of the language model, which adapters lead to:
one after the sum, or one for each branch before they are interleaved. Class tokens and registers are left out. Both
towers are frozen: no gradient goes into them.

As published, DINOv2 reads the very tensor that CLIP reads, in CLIP's colours; `dino_colours` gives it its own. What the
paper leaves open about Additive-MoF are fields: a norm of each branch before they meet, adapters of their own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn

from mmjax.models import clip as clip_system
from mmjax.models import vit
from mmjax.nn.linear import Linear, lecun_normal
from mmjax.nn.mlp import gelu
from mmjax.ops import images as image_ops


class Features(NamedTuple):
    clip: jax.Array  # [B N D]
    dino: jax.Array  # [B N E]


class Colours(NamedTuple):
    """What uint8 images are normalised by, RGB in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# Which layer of a tower is read: what it computed -> [B P+N D]


def before_last(out: vit.ViTOutput) -> jax.Array:
    """LLaVA's choice of CLIP, hidden_states[-2]: the last block is for the class token. No norm."""
    if out.hidden_states.shape[0] < 2:
        raise ValueError("a tower of one block has no layer before the last; read last_block")
    return out.hidden_states[-2]


def last_block(out: vit.ViTOutput) -> jax.Array:
    """MMVP's choice of DINOv2, x_prenorm: after the last block, before the last norm."""
    return out.hidden_states[-1]


def last_normed(out: vit.ViTOutput) -> jax.Array:
    """What DINOv2 itself hands out as patch tokens (x_norm_patchtokens). CLIP's tower has no norm there."""
    return out.last_hidden_state


# From images to the features of a tower


def tower_of(model: nn.Module) -> nn.Module:
    """The part of a CLIP, SigLIP, DINO or DINOv2 that sees; a bare ViT is its own. `model` must be bound."""
    return getattr(model, "vision", getattr(model, "backbone", model))


def colours_of(model: nn.Module) -> Colours:
    config = model.config if hasattr(model.config, "image_mean") else model.config.vision
    if isinstance(model, clip_system.VisionTower):
        raise ValueError("a bare tower of CLIP does not know its colours; give the whole CLIP, or float images")
    return Colours(config.image_mean, config.image_std)


def patches(
    model: nn.Module, images: jax.Array, layer: Callable = last_block, colours: Colours | None = None
) -> jax.Array:
    """images [B H W 3] uint8, or float already normalised -> [B N D], without gradient.

    model: bound, as `model.bind(variables)` or inside of an `apply`. colours: of uint8 images; None: the model's own.
    """
    tower = tower_of(model)
    if not jnp.issubdtype(images.dtype, jnp.floating):
        images = image_ops.to_float(images, *(colours_of(model) if colours is None else colours))
    tokens = layer(tower(images, collect=True))[:, tower.config.prefix :]
    return jax.lax.stop_gradient(tokens)


def of_towers(
    clip: nn.Module,
    dino: nn.Module,
    images: jax.Array,
    *,
    clip_layer: Callable = before_last,
    dino_layer: Callable = last_block,
    dino_colours: Colours | None = None,
) -> Features:
    """Both towers, bound, on the same images [B H W 3]: uint8, or float already in CLIP's colours.

    dino_colours: what DINO's uint8 images are normalised by, such as colours_of(dino); None: as published, CLIP's.
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        dino_colours = colours_of(clip) if dino_colours is None else dino_colours
    elif dino_colours is not None:
        raise ValueError("float images are normalised already; give uint8 images, so that DINO gets colours of its own")
    seen, other = patches(clip, images, clip_layer), patches(dino, images, dino_layer, dino_colours)
    if seen.shape[1] != other.shape[1]:
        sizes = [tower_of(model).config.patch_size for model in (clip, dino)]
        raise ValueError(
            f"the towers must see the same grid, got {seen.shape[1]} and {other.shape[1]} patches of {sizes[0]} and "
            f"{sizes[1]} pixels"
        )
    return Features(seen, other)


# Mixing: features of both branches -> what one sequence of tokens is made of


def additive(clip: jax.Array, dino: jax.Array, alpha: jax.Array | float) -> jax.Array:
    """[B N D], [B N D] -> [B N D]: token by token. With alpha 1 it is CLIP alone, with 0 DINO."""
    _check(clip, dino)
    return alpha * clip + (1 - alpha) * dino


def interleave(clip: jax.Array, dino: jax.Array) -> jax.Array:
    """[B N H], [B N H] -> [B 2N H]: patch after patch, CLIP's token before DINO's."""
    _check(clip, dino)
    return rearrange([clip, dino], "s b n h -> b (n s) h")


def parted(tokens: jax.Array) -> Features:
    """The inverse of `interleave`."""
    if tokens.ndim != 3 or tokens.shape[1] % 2:
        raise ValueError(f"interleaved tokens are [B 2N H], got {list(tokens.shape)}")
    return Features(*rearrange(tokens, "b (n s) h -> s b n h", s=2))


def _check(clip: jax.Array, dino: jax.Array) -> None:
    if clip.ndim != 3 or clip.shape != dino.shape:
        raise ValueError(
            f"both branches must be [B N D] of one shape, got {list(clip.shape)} and {list(dino.shape)}; towers of "
            "other widths need adapters of their own, of other grids other image sizes"
        )


# Adapters: name= -> module, [... D] -> [... H]. `partial(Linear, H)` is the linear one


class Identity(nn.Module):
    """Nothing."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... D] -> [... D]
        return x


class MLPAdapter(nn.Module):
    """LLaVA-1.5's mlp2x_gelu: two layers as wide as the language model, with exact GELU between."""

    width: int  # H
    dtype: Any = jnp.float32
    kernel_init: Callable = lecun_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # [... D] -> [... H]
        x = gelu(Linear(self.width, True, self.dtype, self.kernel_init, name="up")(x))
        return Linear(self.width, True, self.dtype, self.kernel_init, name="down")(x)


Part = Callable[..., nn.Module]  # name= -> module


class Additive(nn.Module):
    """A-MoF: as many tokens as one tower gives."""

    adapter: Part
    alpha: float = 0.5  # weight of CLIP
    norm: Part = Identity  # of each branch, before all else
    own_adapters: bool = False  # one for each branch, before they are mixed; otherwise one after

    @nn.compact
    def __call__(self, clip: jax.Array, dino: jax.Array) -> jax.Array:  # [B N D], [B N E] -> [B N H]
        clip, dino = self.norm(name="clip_norm")(clip), self.norm(name="dino_norm")(dino)
        if not self.own_adapters:
            return self.adapter(name="adapter")(additive(clip, dino, self.alpha))
        clip, dino = self.adapter(name="clip_adapter")(clip), self.adapter(name="dino_adapter")(dino)
        return additive(clip, dino, self.alpha)


class Interleaved(nn.Module):
    """I-MoF: twice as many tokens as one tower gives, each branch through its own adapter."""

    adapter: Part
    norm: Part = Identity  # of each branch, before its adapter; none as published

    @nn.compact
    def __call__(self, clip: jax.Array, dino: jax.Array) -> jax.Array:  # [B N D], [B N E] -> [B 2N H]
        clip, dino = self.norm(name="clip_norm")(clip), self.norm(name="dino_norm")(dino)
        return interleave(self.adapter(name="clip_adapter")(clip), self.adapter(name="dino_adapter")(dino))


def llava_13b() -> Interleaved:  # MoF_Models: Vicuna-13B
    return Interleaved(partial(MLPAdapter, 5120))


def llava_7b() -> Interleaved:  # the same recipe for Vicuna-7B
    return Interleaved(partial(MLPAdapter, 4096))
