"""What every layer of an encoder makes of a picture or a text: the features that `platonic` compares.

As Huh et al. 2024 take them: of a vision model the class token after each block, of a language model the mean over a
text's tokens after each block. A vision model without a class token gives the mean over its patches; a language model
that hands out no layers (GPT, Mamba) gives its last one.

N rows, L layers, D width, B rows that are read at once, T tokens.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn

from mmjax.evals import features
from mmjax.models import bert


def of_images(model: nn.Module, variables: Mapping, images: np.ndarray) -> np.ndarray:
    """images [N H W 3] float, already normalised -> float32 [N L D]."""
    return features.encode(model, variables, {"images": images}, _image_states)


def of_texts(model: nn.Module, variables: Mapping, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """rows: input_ids [N T], attention_mask [N T] bool -> float32 [N L D]. Without a mask all count, as in SigLIP."""
    ids = rows["input_ids"]
    mask = rows.get("attention_mask", np.ones(ids.shape, bool))
    return features.encode(model, variables, {"input_ids": ids, "attention_mask": mask}, _text_states)


def _image_states(model: nn.Module, images: jax.Array) -> jax.Array:  # [B H W 3] -> [B L D]
    tower = getattr(model, "vision", getattr(model, "backbone", model))  # CLIP's, DINO's, or a ViT itself
    states = tower(images, collect=True).hidden_states  # [L B T D]
    states = states[:, :, 0] if tower.config.class_token else states[:, :, tower.config.prefix :].mean(2)
    return rearrange(states, "l b d -> b l d")


def _text_states(model: nn.Module, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:  # [B T] -> [B L D]
    tower = getattr(model, "text", model)
    if "collect" in inspect.signature(type(tower).__call__).parameters:
        states = tower(input_ids, attention_mask, collect=True).hidden_states  # [L B T D]
    else:
        states = tower(input_ids, attention_mask).last_hidden_state[None]
    pooled = jax.vmap(lambda one: bert.mean_pool(one.astype(jnp.float32), attention_mask))(states)
    return rearrange(pooled, "l b d -> b l d")


def reads(model: Any) -> tuple[str, ...]:
    """Which of "image" and "text" a model encodes."""
    if hasattr(type(model), "encode_image") and hasattr(type(model), "encode_text"):
        return ("image", "text")
    takes = inspect.signature(type(model).__call__).parameters
    return ("image",) if "images" in takes else ("text",) if "input_ids" in takes else ()
