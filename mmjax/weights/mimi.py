"""Mimi as transformers keeps it (MimiModel), both ways. Files of a codec that lacks one half are refused."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mmjax.models import mimi
from mmjax.nn.quantizers import MovingCodebook
from mmjax.nn.residual import ResidualCodebook
from mmjax.weights import encodec, seanet
from mmjax.weights.engine import TRANSPOSE, Rule, Transform, norm
from mmjax.weights.fields import Fields

MODEL = mimi.Mimi
FORMAT = "transformers' MimiModel"
IGNORED = (r"\.codebook\.initialized$",)
COLLECTIONS = encodec.COLLECTIONS
PARTS = ("semantic", "acoustic")
# Ours are the sums divided by the counts, which they do as they read: no tensor of theirs, so one is made.
STATE = {"codes": "embed", "count": "cluster_usage", "total": "embed_sum"}
LEAST = 1e-5  # of the counts, as they divide


def RULES(model: mimi.Mimi) -> list[Rule]:
    c = model.config
    rules = [
        *seanet.encoder(c.codec),
        *seanet.decoder(c.codec),
        Rule("down/kernel", "downsample.conv.weight", seanet.CONV),
    ]
    groups = c.up_groups
    up = Transform(
        lambda x: rearrange(x, "(g i) o k -> k g i o", g=groups), lambda x: rearrange(x, "k g i o -> (g i) o k")
    )
    rules.append(Rule("up/kernel", "upsample.conv.weight", up))
    for half in ("encoder_transformer", "decoder_transformer"):
        rules += _layers(f"{half}/layers", f"{half}.layers.{{i}}")
    for part in PARTS:
        for side, their in (("in", "input_proj"), ("out", "output_proj")):
            rules.append(Rule(f"quantizer/{part}_{side}/kernel", f"{_quantizer(part)}.{their}.weight", seanet.POINT))
        ours = f"codebook/quantizer/{part}/layers/state"
        rules += [Rule(f"{ours}/{our}", f"{_codebook(part)}.{their}") for our, their in STATE.items()]
    return rules


def _quantizer(part: str) -> str:
    return f"quantizer.{part}_residual_vector_quantizer"


def _codebook(part: str, level: int | str = "{i}") -> str:
    return f"{_quantizer(part)}.layers.{level}.codebook"


def _layers(ours: str, theirs: str) -> list[Rule]:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "o_proj"}
    kernels = {f"attention/{our}": f"self_attn.{their}" for our, their in names.items()}
    kernels |= {"up": "mlp.fc1", "down": "mlp.fc2"}
    return [
        *norm(f"{ours}/norm1", f"{theirs}.input_layernorm"),
        *norm(f"{ours}/norm2", f"{theirs}.post_attention_layernorm"),
        *(Rule(f"{ours}/{our}/kernel", f"{theirs}.{their}.weight", TRANSPOSE) for our, their in kernels.items()),
        Rule(f"{ours}/layer_scale1", f"{theirs}.self_attn_layer_scale.scale"),
        Rule(f"{ours}/layer_scale2", f"{theirs}.mlp_layer_scale.scale"),
    ]


def _levels(model: mimi.Mimi) -> list[str]:
    """The names of all codebooks."""
    counts = zip(PARTS, (model.config.semantic.levels, model.config.acoustic.levels), strict=True)
    return [_codebook(part, i) for part, count in counts for i in range(count)]


def renamed(model: mimi.Mimi, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With codes beside what they are made of."""
    out = dict(tensors)
    for name in _levels(model):
        total, count = (tensors.get(f"{name}.{STATE[x]}") for x in ("total", "count"))
        if total is not None and count is not None:
            out[f"{name}.embed"] = np.asarray(total) / np.maximum(np.asarray(count), LEAST)[:, None]
    return out


def written(model: mimi.Mimi, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without codes, which follow from sums and counts, and with the marks of codebooks that have begun."""
    made = {f"{name}.embed" for name in _levels(model)}
    out = {name: tensor for name, tensor in tensors.items() if name not in made}
    return out | {f"{name}.initialized": np.ones(1, np.float32) for name in _levels(model)}


def from_config(config: Fields) -> mimi.Mimi:
    """config.json; an absent field has the value that transformers 5 gives it."""
    for name, only in (("hidden_act", "gelu"), ("attention_bias", False)):
        config.expect(name, only)
    for name in ("encoder_config", "decoder_config"):
        if name in config.values and config.values[name] is None:
            raise ValueError(f"{config.where}: {name} is null, half a codec; supported are whole ones only")
    sizes = {"num_filters": 64, "hidden_size": 512, "num_lstm_layers": 0}
    shared = Fields({**sizes, **config.values}, config.where)
    c = encodec.codec(shared, ratios=(8, 6, 5, 4), last_kernel=3, shortcut=False, padding="constant")
    width = config.get("vector_quantization_hidden_dimension", int, 256)
    heads = config.get("num_attention_heads", int, 8)
    for name, only in (("codebook_dim", width), ("head_dim", c.dim // heads)):
        if config.values.get(name) is not None:
            config.expect(name, only)
    if width == c.dim:
        raise ValueError(
            f"{config.where}: vector_quantization_hidden_dimension and hidden_size are both {width}, a quantiser "
            "without projections; supported are those with them only"
        )
    rate = config.get("sampling_rate", int, 24_000)
    if config.values.get("frame_rate") is not None:
        config.expect("frame_rate", rate / c.hop / mimi.STRIDE)
    size = config.get("codebook_size", int, 2048)
    semantic, levels = config.get("num_semantic_quantizers", int, 1), config.get("num_quantizers", int, 32)
    rotary = config.values.get("rope_parameters") or config.values
    Fields(rotary, f"{config.where}: rope_parameters").expect("rope_type", "default")
    return mimi.Mimi(
        mimi.MimiConfig(
            sample_rate=rate,
            codec=c,
            semantic=ResidualCodebook(MovingCodebook(size, width, 1.0), semantic),
            acoustic=ResidualCodebook(MovingCodebook(size, width, 1.0), levels - semantic, dropout=True),
            depth=config.get("num_hidden_layers", int, 8),
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads", int, 8),
            hidden=config.get("intermediate_size", int, 2048),
            window=config.get("sliding_window", int, 250),
            theta=Fields(rotary, config.where).get("rope_theta", float, 10_000.0),
            layer_scale=config.get("layer_scale_initial_scale", float, 0.01),
            epsilon=config.get("norm_eps", float, 1e-5),
            up_groups=config.get("upsample_groups", int, 512),
        )
    )


def to_config(model: mimi.Mimi) -> dict:
    c = model.config
    for quantizer in (c.semantic, c.acoustic):
        encodec.moving(quantizer, FORMAT)
    if c.codec.lstm:
        raise ValueError(f"{FORMAT} has no LSTM, got codec.lstm={c.codec.lstm}")
    return {
        "architectures": ["MimiModel"],
        "model_type": "mimi",
        "sampling_rate": c.sample_rate,
        **encodec.codec_fields(c.codec),
        "codebook_size": c.semantic.num_codes,
        "codebook_dim": c.semantic.dim,
        "vector_quantization_hidden_dimension": c.semantic.dim,
        "num_quantizers": c.levels,
        "num_semantic_quantizers": c.semantic.levels,
        "upsample_groups": c.up_groups,
        "num_hidden_layers": c.depth,
        "intermediate_size": c.hidden,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "hidden_act": "gelu",
        "norm_eps": c.epsilon,
        "sliding_window": c.window,
        "layer_scale_initial_scale": c.layer_scale,
        "rope_parameters": {"rope_theta": c.theta, "rope_type": "default"},
    }


def abstract(model: mimi.Mimi) -> dict:
    """The variables' shapes."""
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, model.config.hop), jnp.float32))
