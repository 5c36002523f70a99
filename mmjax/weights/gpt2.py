"""GPT-2 as transformers' GPT2LMHeadModel keeps it, and GPT2Model: the same names without `transformer.`, as on the hub.

Its kernels are [in, out], as ours; query, key and value are columns of one.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import gpt
from mmjax.nn.mlp import gelu, gelu_tanh, quick_gelu
from mmjax.weights.engine import Rule, norm
from mmjax.weights.fields import Fields

MODEL = gpt.GPT
FORMAT = "transformers' GPT2LMHeadModel"
ACTIVATIONS = {  # the first name of a function is written
    "gelu_new": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh, "gelu": gelu, "quick_gelu": quick_gelu, "relu": jax.nn.relu,
}  # fmt: skip
PREFIX = "transformer."


def _linear(ours: str | tuple[str, ...], theirs: str) -> list[Rule]:
    names = (ours,) if isinstance(ours, str) else ours
    weight, bias = ([f"{name}/{part}" for name in names] for part in ("kernel", "bias"))
    one = lambda paths: paths[0] if len(paths) == 1 else tuple(paths)  # noqa: E731
    return [Rule(one(weight), f"{theirs}.weight", axis=-1), Rule(one(bias), f"{theirs}.bias")]


RULES = [
    Rule("embed/embedding", f"{PREFIX}wte.weight"),
    Rule("pos_embed", f"{PREFIX}wpe.weight"),
    *norm("layers/norm1", f"{PREFIX}h.{{i}}.ln_1"),
    *_linear(tuple(f"layers/attention/{name}" for name in ("query", "key", "value")), f"{PREFIX}h.{{i}}.attn.c_attn"),
    *_linear("layers/attention/out", f"{PREFIX}h.{{i}}.attn.c_proj"),
    *norm("layers/norm2", f"{PREFIX}h.{{i}}.ln_2"),
    *_linear("layers/mlp/up", f"{PREFIX}h.{{i}}.mlp.c_fc"),
    *_linear("layers/mlp/down", f"{PREFIX}h.{{i}}.mlp.c_proj"),
    *norm("norm", f"{PREFIX}ln_f"),
]
# Causal masks of older files; a copy of wte.
IGNORED = (r"\.attn\.(bias|masked_bias)$", r"^lm_head\.weight$")


def renamed(model: gpt.GPT, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The prefix for the names of a bare GPT2Model, which is what the hub's file holds."""
    bare = "wte.weight" in tensors
    return {f"{PREFIX}{name}" if bare else name: tensor for name, tensor in tensors.items()}


def from_config(config: Fields) -> gpt.GPT:
    """config.json; an absent field has the value that transformers 5 gives it."""
    config.expect("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        config.expect(name, False)
    config.expect("tie_word_embeddings", True)
    width = config.get("n_embd", int, 768)
    return gpt.GPT(
        gpt.GPTConfig(
            vocab_size=config.get("vocab_size", int, 50_257),
            length=config.get("n_positions", int, 1024),
            width=width,
            depth=config.get("n_layer", int, 12),
            num_heads=config.get("n_head", int, 12),
            hidden=config.get("n_inner", int, 4 * width),
            activation=config.one_of("activation_function", ACTIVATIONS, "gelu_new"),
            epsilon=config.get("layer_norm_epsilon", float, 1e-5),
        )
    )


def to_config(model: gpt.GPT) -> dict:
    if isinstance(model, gpt.GPT1):
        raise ValueError(f"{FORMAT} has its norms before the sums; a GPT1 cannot be written as one")
    c = model.config
    names = [name for name, function in ACTIVATIONS.items() if function is c.activation]
    if not names:
        raise ValueError(f"activation {c.activation} has no name here; supported are {', '.join(ACTIVATIONS)}")
    last = c.vocab_size - 1  # GPT-2's only special token; transformers warns where its default lies outside
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": c.vocab_size,
        "n_positions": c.length,
        "n_embd": c.width,
        "n_layer": c.depth,
        "n_head": c.num_heads,
        "n_inner": c.hidden,
        "activation_function": names[0],
        "layer_norm_epsilon": c.epsilon,
        "bos_token_id": last,
        "eos_token_id": last,
    }


def abstract(model: gpt.GPT) -> dict:
    """The variables' shapes."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))
