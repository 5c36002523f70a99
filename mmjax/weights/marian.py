"""The Transformer as transformers' MarianMTModel keeps it: the translators of Helsinki-NLP."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import transformer
from mmjax.nn.mlp import gelu
from mmjax.weights.engine import Rule, Transform, linear, norm
from mmjax.weights.fields import Fields

MODEL = transformer.Transformer
FORMAT = "transformers' MarianMTModel"
ACTIVATIONS = {  # the first name of a function is written
    "relu": jax.nn.relu, "swish": jax.nn.silu, "silu": jax.nn.silu, "gelu": gelu
}  # fmt: skip
BIAS = "final_logits_bias"
ROW = Transform(lambda x: x[0], lambda x: x[None])  # [V], which they keep as [1 V]


def _attention(ours: str, theirs: str) -> list[Rule]:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return [rule for name, other in names.items() for rule in linear(f"{ours}/{name}", f"{theirs}.{other}")]


def _layers(side: str, parts: Mapping[str, str], last: str) -> list[Rule]:
    """parts: our attention -> theirs, in order; each has a norm. last: our norm of the MLP."""
    ours, theirs = f"{side}/layers", f"model.{side}.layers.{{i}}"
    rules = [*linear(f"{ours}/mlp/up", f"{theirs}.fc1"), *linear(f"{ours}/mlp/down", f"{theirs}.fc2")]
    for number, (name, other) in enumerate(parts.items(), start=1):
        rules += _attention(f"{ours}/{name}", f"{theirs}.{other}")
        rules += norm(f"{ours}/norm{number}", f"{theirs}.{other}_layer_norm")
    return [*rules, *norm(f"{ours}/{last}", f"{theirs}.final_layer_norm")]


RULES = [
    Rule("embed/embedding", "model.shared.weight"),
    Rule("logit_bias", BIAS, ROW),
    *_layers("encoder", {"attention": "self_attn"}, "norm2"),
    *_layers("decoder", {"attention": "self_attn", "cross": "encoder_attn"}, "norm3"),
]
# Copies of the table; sines and cosines.
IGNORED = (r"^model\.(en|de)coder\.embed_tokens\.weight$", r"^lm_head\.weight$", r"\.embed_positions\.weight$")


def renamed(model: transformer.Transformer, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Files may lack the bias of the logits, which transformers then takes as zero."""
    return {BIAS: np.zeros((1, model.config.vocab_size), np.float32), **tensors}


def from_config(config: Fields) -> transformer.Transformer:
    """config.json; an absent field has the value that transformers 5 gives it."""
    for name in ("normalize_before", "normalize_embedding", "add_final_layer_norm"):  # of older files
        config.expect(name, False)
    for name in ("tie_word_embeddings", "share_encoder_decoder_embeddings"):
        config.expect(name, True)
    if not config.get("scale_embedding", bool, False):
        raise ValueError(f"{config.where}: scale_embedding is false, supported is true only")
    for name in ("ffn_dim", "attention_heads"):
        sizes = [config.values.get(f"{side}_{name}") for side in ("encoder", "decoder")]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{config.where}: encoder_{name} and decoder_{name} must be equal, got {sizes}")
    vocab_size = config.get("vocab_size", int, 58_101)
    config.expect("decoder_vocab_size", config.values.get("decoder_vocab_size") and vocab_size)
    return transformer.Transformer(
        transformer.TransformerConfig(
            vocab_size=vocab_size,
            width=config.get("d_model", int, 1024),
            depth=config.get("encoder_layers", int, 12),
            decoder_depth=config.get("decoder_layers", int, 12),
            num_heads=config.get("encoder_attention_heads", int, 16),
            hidden=config.get("encoder_ffn_dim", int, 4096),
            activation=config.one_of("activation_function", ACTIVATIONS, "gelu"),
            positions=transformer.halves,
            use_bias=True,
            head_bias=True,
            epsilon=1e-5,
            pad_id=config.get("pad_token_id", int, 58_100),
            start_id=config.get("decoder_start_token_id", int, 58_100),
            end_id=config.get("eos_token_id", int, 0),
            dropout=config.get("dropout", float, 0.1),
            label_smoothing=0.0,
        )
    )


def to_config(model: transformer.Transformer) -> dict:
    c = model.config
    fixed = {"positions": transformer.halves, "norm_first": False, "use_bias": True, "head_bias": True, "epsilon": 1e-5}
    other = [f"{name}={getattr(c, name)}" for name, value in fixed.items() if getattr(c, name) != value]
    if other:
        raise ValueError(f"{FORMAT} cannot hold {', '.join(other)}; it is always {fixed}")
    names = [name for name, function in ACTIVATIONS.items() if function is c.activation]
    if not names:
        raise ValueError(f"activation {c.activation} has no name here; supported are {', '.join(ACTIVATIONS)}")
    both = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"attention_heads": c.num_heads, "ffn_dim": c.hidden}.items()
    }
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "is_encoder_decoder": True,
        "vocab_size": c.vocab_size,
        "decoder_vocab_size": c.vocab_size,
        "d_model": c.width,
        "encoder_layers": c.depth,
        "decoder_layers": c.decoder_depth,
        **both,
        "activation_function": names[0],
        "dropout": c.dropout,
        "scale_embedding": True,
        "pad_token_id": c.pad_id,
        "decoder_start_token_id": c.start_id,
        "eos_token_id": c.end_id,
        "forced_eos_token_id": None,
    }


def abstract(model: transformer.Transformer) -> dict:
    """The variables' shapes."""
    ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(lambda rng, ids: model.init(rng, ids, decoder_input_ids=ids), jax.random.key(0), ids)
