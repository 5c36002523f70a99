"""LLaMA as transformers' LlamaForCausalLM keeps it, and Mistral: the same with a window of attention."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import llama
from mmjax.ops import rope
from mmjax.weights.engine import TRANSPOSE, Rule
from mmjax.weights.fields import Fields

MODEL = llama.Llama
FORMAT = "transformers' LlamaForCausalLM"
PREFIX = "model."
KINDS = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}  # model_type -> class


def _layer(ours: str, theirs: str, bias: bool = False) -> list[Rule]:
    ours, theirs = f"layers/{ours}", f"model.layers.{{i}}.{theirs}"
    weight = Rule(f"{ours}/kernel", f"{theirs}.weight", TRANSPOSE)
    return [weight, Rule(f"{ours}/bias", f"{theirs}.bias")] if bias else [weight]


def RULES(model: llama.Llama) -> list[Rule]:
    c = model.config
    attention = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
    return [
        Rule("embed/embedding", "model.embed_tokens.weight"),
        Rule("layers/norm1/scale", "model.layers.{i}.input_layernorm.weight"),
        *[
            rule
            for our, their in attention.items()
            for rule in _layer(f"attention/{our}", f"self_attn.{their}", c.use_bias)
        ],
        Rule("layers/norm2/scale", "model.layers.{i}.post_attention_layernorm.weight"),
        *[rule for name in ("gate", "up", "down") for rule in _layer(f"mlp/{name}", f"mlp.{name}_proj")],
        Rule("norm/scale", "model.norm.weight"),
        *([] if c.tied else [Rule("head/kernel", "lm_head.weight", TRANSPOSE)]),
    ]


def IGNORED(model: llama.Llama) -> tuple[str, ...]:
    """Frequencies that old files hold as buffers; the copy of the table that a tied head is."""
    frequencies = r"\.rotary_emb\.inv_freq$"
    return (frequencies, r"^lm_head\.weight$") if model.config.tied else (frequencies,)


def renamed(model: llama.Llama, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The prefix for the names of a bare LlamaModel with a tied head."""
    bare = "embed_tokens.weight" in tensors
    return {f"{PREFIX}{name}" if bare and name != "lm_head.weight" else name: x for name, x in tensors.items()}


def from_config(config: Fields) -> llama.Llama:
    """config.json; an absent field has the value that transformers 5 gives it."""
    mistral = config.values.get("model_type") == "mistral"
    config.expect("hidden_act", "silu")
    config.expect("mlp_bias", False)
    width, num_heads = config.get("hidden_size", int, 4096), config.get("num_attention_heads", int, 32)
    theta, scaling = _rope(config)
    return llama.Llama(
        llama.LlamaConfig(
            vocab_size=config.get("vocab_size", int, 32_000),
            length=config.get("max_position_embeddings", int, 131_072 if mistral else 2048),
            width=width,
            depth=config.get("num_hidden_layers", int, 32),
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads", int, 8 if mistral else num_heads),
            head_dim=config.get("head_dim", int, width // num_heads),
            hidden=config.get("intermediate_size", int, 14_336 if mistral else 11_008),
            theta=theta,
            scaling=scaling,
            epsilon=config.get("rms_norm_eps", float, 1e-6),
            window=_window(config) if mistral else None,
            tied=config.get("tie_word_embeddings", bool, False),
            use_bias=config.get("attention_bias", bool, False),
        )
    )


def _window(config: Fields) -> int | None:
    """An absent field is the default; null means no window."""
    named = "sliding_window" in config.values
    return None if named and config.values["sliding_window"] is None else config.get("sliding_window", int, 4096)


def _rope(config: Fields) -> tuple[float, rope.Scaling]:
    """theta and scaling: transformers 5 keeps both in rope_parameters, files before it in rope_theta, rope_scaling."""
    name = next((n for n in ("rope_parameters", "rope_scaling") if config.values.get(n) is not None), None)
    part = Fields({}, config.where) if name is None else config.part(name)
    theta = part.get("rope_theta", float, config.get("rope_theta", float, 10_000.0))
    kind = part.get("rope_type", str, part.get("type", str, "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, rope.Linear(part.get("factor", float))
    if kind == "llama3":
        low, high = part.get("low_freq_factor", float), part.get("high_freq_factor", float)
        length = part.get("original_max_position_embeddings", int)
        return theta, rope.Llama3(part.get("factor", float), low, high, length)
    raise ValueError(f"{part.where}: rope_type is {kind!r}, supported are default, linear, llama3")


def to_config(model: llama.Llama) -> dict:
    c = model.config
    kind = "llama" if c.window is None else "mistral"
    if kind == "mistral" and c.use_bias:
        raise ValueError(
            "transformers' Mistral has no biases in its attention; a Llama with window and bias is neither"
        )
    rotary = {"rope_type": "default", "rope_theta": c.theta}
    if isinstance(c.scaling, rope.Linear):
        rotary |= {"rope_type": "linear", "factor": c.scaling.factor}
    elif isinstance(c.scaling, rope.Llama3):
        rotary |= {
            "rope_type": "llama3",
            "factor": c.scaling.factor,
            "low_freq_factor": c.scaling.low,
            "high_freq_factor": c.scaling.high,
            "original_max_position_embeddings": c.scaling.length,
        }
    return {
        "architectures": [KINDS[kind]],
        "model_type": kind,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.length,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "intermediate_size": c.hidden,
        "hidden_act": "silu",
        "rope_parameters": rotary,
        "rms_norm_eps": c.epsilon,
        "tie_word_embeddings": c.tied,
        **({"attention_bias": c.use_bias} if kind == "llama" else {"sliding_window": c.window}),
    }


def abstract(model: llama.Llama) -> dict:
    """The variables' shapes."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))
