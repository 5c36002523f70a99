"""MAR as LTH14/mar keeps it, both ways. Its checkpoint-last.pth holds the weights twice, as trained and their moving
average `model_ema`; the published numbers are of the average, which is what is read here."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import mar
from mmjax.weights import engine, files
from mmjax.weights.engine import TRANSPOSE, Rule, Transform, linear, norm

FORMAT = "LTH14/mar's MAR"
ROW = Transform(lambda x: x[0], lambda x: x[None])  # tables that they keep as [1 ...]
QKV = ("query", "key", "value")


def _trunk(ours: str, blocks: str, last: str) -> list[Rule]:
    layers, theirs = f"{ours}/layers", f"{blocks}.{{i}}"
    attention = f"{layers}/attention"
    return [
        *norm(f"{layers}/norm1", f"{theirs}.norm1"),
        Rule(tuple(f"{attention}/{x}/kernel" for x in QKV), f"{theirs}.attn.qkv.weight", TRANSPOSE),
        Rule(tuple(f"{attention}/{x}/bias" for x in QKV), f"{theirs}.attn.qkv.bias"),
        *linear(f"{attention}/out", f"{theirs}.attn.proj"),
        *norm(f"{layers}/norm2", f"{theirs}.norm2"),
        *linear(f"{layers}/up", f"{theirs}.mlp.fc1"),
        *linear(f"{layers}/down", f"{theirs}.mlp.fc2"),
        *norm(f"{ours}/norm", last),
    ]


def _head(ours: str, theirs: str) -> list[Rule]:
    layers, blocks = f"{ours}/layers", f"{theirs}.res_blocks.{{i}}"
    return [
        *linear(f"{ours}/time/up", f"{theirs}.time_embed.mlp.0"),
        *linear(f"{ours}/time/down", f"{theirs}.time_embed.mlp.2"),
        *linear(f"{ours}/condition", f"{theirs}.cond_embed"),
        *linear(f"{ours}/embed", f"{theirs}.input_proj"),
        *norm(f"{layers}/norm", f"{blocks}.in_ln"),
        *linear(f"{layers}/up", f"{blocks}.mlp.0"),
        *linear(f"{layers}/down", f"{blocks}.mlp.2"),
        *linear(f"{layers}/modulation/linear", f"{blocks}.adaLN_modulation.1"),
        *linear(f"{ours}/final/modulation/linear", f"{theirs}.final_layer.adaLN_modulation.1"),
        *linear(f"{ours}/final/linear", f"{theirs}.final_layer.linear"),
    ]


RULES = [
    Rule("class_embed", "class_emb.weight"),
    Rule("no_class", "fake_latent"),
    *linear("embed", "z_proj"),
    *norm("embed_norm", "z_proj_ln"),
    Rule("encoder_pos", "encoder_pos_embed_learned", ROW),
    *_trunk("encoder", "encoder_blocks", "encoder_norm"),
    *linear("decoder_embed", "decoder_embed"),
    Rule("mask_embed", "mask_token", ROW),
    Rule("decoder_pos", "decoder_pos_embed_learned", ROW),
    *_trunk("decoder", "decoder_blocks", "decoder_norm"),
    Rule("head_pos", "diffusion_pos_embed_learned", ROW),
    *_head("head", "diffloss.net"),
]


def abstract(model: mar.MAR) -> dict:
    """The variables' shapes."""
    c = model.config
    images = jax.ShapeDtypeStruct((1, c.side, c.side, c.channels), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images, jax.ShapeDtypeStruct((1,), jnp.int32))


def load(model: mar.MAR, tensors: Mapping[str, np.ndarray], *, source: str = "tensors") -> dict:
    """The variables of `model`."""
    return {"params": engine.load(RULES, tensors, abstract(model)["params"], format=FORMAT, source=source)}


def save(model: mar.MAR, variables: Mapping) -> dict[str, np.ndarray]:
    """Their tensors, by name: what MAR.load_state_dict takes."""
    return engine.save(RULES, variables["params"], format=FORMAT)


def load_mar(path: str | Path, *, channels: int = 16, num_heads: int | None = None) -> tuple[mar.MAR, dict]:
    """The model of checkpoint-last.pth, or of a safetensors file of the same names, and its variables.

    channels: of the autoencoder, which no tensor tells. num_heads: None takes what was published, 12 where the width is
    768 and 16 elsewhere.
    """
    tensors = files.read(Path(path))
    for prefix in ("model_ema.", "model."):
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
            break
    model = mar.MAR(_sizes(tensors, str(path), channels, num_heads))
    return model, load(model, tensors, source=str(path))


def _sizes(tensors: Mapping[str, np.ndarray], path: str, channels: int, num_heads: int | None) -> mar.MARConfig:
    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors:
            raise ValueError(f"{path} is no {FORMAT}: {name} is missing")
        return tensors[name].shape

    def count(pattern: str) -> int:
        return 1 + max((int(found[1]) for name in tensors if (found := re.match(pattern, name))), default=-1)

    (width, dim), tokens = shape("z_proj.weight"), shape("diffusion_pos_embed_learned")[1]
    patch = math.isqrt(dim // channels)
    if channels * patch**2 != dim:
        raise ValueError(f"{path} has tokens of {dim} numbers, which no patch of {channels} channels has; set channels")
    return mar.MARConfig(
        side=math.isqrt(tokens) * patch,
        channels=channels,
        patch_size=patch,
        width=width,
        depth=count(r"encoder_blocks\.(\d+)\."),
        num_heads=num_heads or (12 if width == 768 else 16),
        hidden=shape("encoder_blocks.0.mlp.fc1.weight")[0],
        buffer=shape("encoder_pos_embed_learned")[1] - tokens,
        head_width=shape("diffloss.net.input_proj.weight")[0],
        head_depth=count(r"diffloss\.net\.res_blocks\.(\d+)\."),
        classes=(shape("class_emb.weight")[0],),
    )
