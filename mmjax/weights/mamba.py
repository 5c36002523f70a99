"""Mamba as transformers' MambaForCausalLM keeps it, and as its authors do (state-spaces/mamba-130m and larger)."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import mamba
from mmjax.weights.engine import TRANSPOSE, Rule, Transform
from mmjax.weights.fields import Fields

MODEL = mamba.Mamba
FORMAT = "transformers' MambaForCausalLM"
PREFIX = "backbone."
DEPTHWISE = Transform(lambda x: x[:, 0].T, lambda x: x.T[:, None])  # torch.nn.Conv1d keeps (channels, 1, taps)
MIXER = f"{PREFIX}layers.{{i}}.mixer."

RULES = [
    Rule("embed/embedding", f"{PREFIX}embeddings.weight"),
    Rule("layers/norm/scale", f"{PREFIX}layers.{{i}}.norm.weight"),
    Rule(("layers/mixer/up/kernel", "layers/mixer/gate/kernel"), f"{MIXER}in_proj.weight", TRANSPOSE),
    Rule("layers/mixer/conv/kernel", f"{MIXER}conv1d.weight", DEPTHWISE),
    Rule("layers/mixer/conv/bias", f"{MIXER}conv1d.bias"),
    Rule("layers/mixer/select/kernel", f"{MIXER}x_proj.weight", TRANSPOSE),
    Rule("layers/mixer/delta/kernel", f"{MIXER}dt_proj.weight", TRANSPOSE),
    Rule("layers/mixer/delta/bias", f"{MIXER}dt_proj.bias"),
    Rule("layers/mixer/A_log", f"{MIXER}A_log", TRANSPOSE),
    Rule("layers/mixer/D", f"{MIXER}D"),
    Rule("layers/mixer/down/kernel", f"{MIXER}out_proj.weight", TRANSPOSE),
    Rule("norm/scale", f"{PREFIX}norm_f.weight"),
]
IGNORED = (r"^lm_head\.weight$",)  # a copy of the table


def renamed(model: mamba.Mamba, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The table's name in the authors' files and in those of older transformers; the prefix for a bare model's."""
    bare = any(name in tensors for name in ("embeddings.weight", "embedding.weight"))
    prefix = lambda name: f"{PREFIX}{name}" if bare and name != "lm_head.weight" else name  # noqa: E731
    new = {f"{PREFIX}embedding.weight": f"{PREFIX}embeddings.weight"}
    return {new.get(prefix(name), prefix(name)): x for name, x in tensors.items()}


def kind_of(config: Mapping) -> str:
    """The model_type of a config.json without one: the authors' has `ssm_cfg` and names Mamba-2 there."""
    if not isinstance(config.get("ssm_cfg"), dict):
        return "missing"
    return "mamba2" if config["ssm_cfg"].get("layer") == "Mamba2" else "mamba"


def from_config(config: Fields) -> mamba.Mamba:
    """config.json; an absent field has the value that transformers 5, or the authors' code, gives it."""
    check(config)
    config.expect("tie_word_embeddings", True)
    if "model_type" not in config.values:
        return mamba.Mamba(_authors(config))
    width = config.get("hidden_size", int, 768)
    rank = config.values.get("time_step_rank", "auto")
    return mamba.Mamba(
        mamba.MambaConfig(
            vocab_size=config.get("vocab_size", int, 50_280),
            width=width,
            depth=config.get("num_hidden_layers", int, 32),
            expand=config.get("expand", int, 2),
            state=config.get("state_size", int, 16),
            taps=config.get("conv_kernel", int, 4),
            rank=math.ceil(width / 16) if rank == "auto" else config.get("time_step_rank", int),
            epsilon=config.get("layer_norm_epsilon", float, 1e-5),
        )
    )


def check(config: Fields) -> None:
    """What no published model changes."""
    for name, only in (("use_bias", False), ("use_conv_bias", True), ("hidden_act", "silu"), ("rms_norm", True)):
        config.expect(name, only)


def padded_vocabulary(config: Fields, multiple: int) -> int:
    """The authors' config holds the tokenizer's size, and their table is longer."""
    multiple = config.get("pad_vocab_size_multiple", int, multiple)
    return -(-config.get("vocab_size", int) // multiple) * multiple


def _authors(config: Fields) -> mamba.MambaConfig:
    inner, width = config.part("ssm_cfg"), config.get("d_model", int)
    config.expect("tie_embeddings", True)
    rank = inner.get("dt_rank", int, math.ceil(width / 16)) if inner.values.get("dt_rank") != "auto" else None
    return mamba.MambaConfig(
        padded_vocabulary(config, 8), width, config.get("n_layer", int), inner.get("expand", int, 2),
        inner.get("d_state", int, 16), inner.get("d_conv", int, 4), rank or math.ceil(width / 16),
    )  # fmt: skip


def to_config(model: mamba.Mamba) -> dict:
    c = model.config
    return {
        "architectures": ["MambaForCausalLM"],
        "model_type": "mamba",
        "vocab_size": c.vocab_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "expand": c.expand,
        "intermediate_size": c.inner,
        "state_size": c.state,
        "conv_kernel": c.taps,
        "time_step_rank": c.rank,
        "layer_norm_epsilon": c.epsilon,
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
        "residual_in_fp32": True,
        "tie_word_embeddings": True,
    }


def abstract(model: mamba.Mamba) -> dict:
    """The variables' shapes."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))
