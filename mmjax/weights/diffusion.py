"""DiT as facebookresearch/DiT keeps it, both ways; its positions are computed, not read."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import diffusion
from mmjax.weights import engine
from mmjax.weights.engine import CONV, TRANSPOSE, Rule, linear

FORMAT = "facebookresearch/DiT's DiT"
POSITIONS = "pos_embed"
QKV = ("query", "key", "value")
RULES = [
    Rule("patch_embed/kernel", "x_embedder.proj.weight", CONV),
    Rule("patch_embed/bias", "x_embedder.proj.bias"),
    *linear("time/up", "t_embedder.mlp.0"),
    *linear("time/down", "t_embedder.mlp.2"),
    Rule("condition/embedding", "y_embedder.embedding_table.weight"),
    *linear("layers/modulation/linear", "blocks.{i}.adaLN_modulation.1"),
    Rule(tuple(f"layers/attention/{x}/kernel" for x in QKV), "blocks.{i}.attn.qkv.weight", TRANSPOSE),
    Rule(tuple(f"layers/attention/{x}/bias" for x in QKV), "blocks.{i}.attn.qkv.bias"),
    *linear("layers/attention/out", "blocks.{i}.attn.proj"),
    *linear("layers/mlp/up", "blocks.{i}.mlp.fc1"),
    *linear("layers/mlp/down", "blocks.{i}.mlp.fc2"),
    *linear("final/modulation/linear", "final_layer.adaLN_modulation.1"),
    *linear("final/linear", "final_layer.linear"),
]


def abstract(model: diffusion.DiT) -> dict:
    """The variables' shapes, for a model whose condition is a label."""
    c = model.config
    images = jax.ShapeDtypeStruct((1, *c.size, c.channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images, jax.ShapeDtypeStruct((1,), jnp.int32))


def load(model: diffusion.DiT, tensors: Mapping[str, np.ndarray], *, source: str = "tensors") -> dict:
    """The variables of `model`, from the average `ema` of a checkpoint or from a published file."""
    target, ignored = abstract(model)["params"], (rf"^{POSITIONS}$",)
    return {"params": engine.load(RULES, tensors, target, format=FORMAT, source=source, ignored=ignored)}


def save(model: diffusion.DiT, variables: Mapping) -> dict[str, np.ndarray]:
    """Their tensors, by name: what DiT.load_state_dict takes."""
    c = model.config
    if c.size[0] != c.size[1]:
        raise ValueError(f"{FORMAT} draws squares, got size={c.size}")
    positions = diffusion.grid_sinusoid(*c.grid, c.width)[None]
    return engine.save(RULES, variables["params"], format=FORMAT) | {POSITIONS: positions}
