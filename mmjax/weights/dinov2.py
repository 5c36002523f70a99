"""DINOv2 as transformers keeps it: Dinov2Model and Dinov2WithRegistersModel, under the names of files and of memory.

Since transformers 5 a model in memory has other names than its file (attention.q_proj there, attention.attention.query
here; mlp.gate_proj and mlp.up_proj there, both in mlp.weights_in here); both are read, those of files are written.

For images of other sizes transformers resizes the positions in its own way where there are no registers; that is what a
loaded model does too. For Meta's, set its config's resize to ops.images.resize_cubic_offset.
"""

import dataclasses
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from mmjax.models import dino, dinov2, vit
from mmjax.ops import images as image_ops
from mmjax.weights.engine import CONV, TRANSPOSE, Rule, linear, norm
from mmjax.weights.fields import Fields
from mmjax.weights.vit import ACTIVATIONS, ROW, TOKEN, abstract, activation_name

__all__ = ["FORMAT", "IGNORED", "MODEL", "RULES", "abstract", "fitted", "from_config", "renamed", "resize", "to_config"]

MODEL = dinov2.Backbone
FORMAT = "transformers' Dinov2Model"
KINDS = ("dinov2", "dinov2_with_registers")  # model_type of config.json
IGNORED = ()
READ = {  # fields of vit.ViTConfig that this format can hold, or that only training reads
    *("image_size", "patch_size", "width", "depth", "num_heads", "hidden", "activation", "epsilon", "mlp", "registers"),
    *("qkv_bias", "mask_token", "layer_scale", "image_mean", "image_std", "resize", "init", "drop_path", "drop"),
}
RENAMED = {  # names in memory -> names in files
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.down_proj\.": ".mlp.weights_out.",
}
GATES = (".mlp.gate_proj.", ".mlp.up_proj.")  # one after the other, weights_in


def RULES(model: dinov2.Backbone) -> list[Rule]:
    c, layer = model.config, "encoder.layer.{i}"
    rules = [
        Rule("patch_embed/kernel", "embeddings.patch_embeddings.projection.weight", CONV),
        Rule("patch_embed/bias", "embeddings.patch_embeddings.projection.bias"),
        Rule("class_embed", "embeddings.cls_token", TOKEN),
        Rule("pos_embed", "embeddings.position_embeddings", ROW),
        *norm("layers/norm1", f"{layer}.norm1"),
        *linear("layers/attention/out", f"{layer}.attention.output.dense"),
        Rule("layers/layer_scale1", f"{layer}.layer_scale1.lambda1"),
        *norm("layers/norm2", f"{layer}.norm2"),
        Rule("layers/layer_scale2", f"{layer}.layer_scale2.lambda1"),
        *norm("norm", "layernorm"),
    ]
    for name in ("query", "key", "value"):
        both = linear(f"layers/attention/{name}", f"{layer}.attention.attention.{name}")
        rules += both if c.qkv_bias else both[:1]
    if c.mlp is vit.swiglu:
        gates = ("layers/mlp/gate", "layers/mlp/up")
        rules.append(Rule(tuple(f"{x}/kernel" for x in gates), f"{layer}.mlp.weights_in.weight", TRANSPOSE))
        rules.append(Rule(tuple(f"{x}/bias" for x in gates), f"{layer}.mlp.weights_in.bias"))
        rules += linear("layers/mlp/down", f"{layer}.mlp.weights_out")
    else:
        rules += [*linear("layers/mlp/up", f"{layer}.mlp.fc1"), *linear("layers/mlp/down", f"{layer}.mlp.fc2")]
    if c.mask_token:
        rules.append(Rule("mask_embed", "embeddings.mask_token", ROW))
    if c.registers:
        rules.append(Rule("register_embed", "embeddings.register_tokens", ROW))
    return rules


def renamed(model: dinov2.Backbone, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, tensor in tensors.items():
        if GATES[0] in name and (up := name.replace(*GATES)) in tensors:
            found[name.replace(GATES[0], ".mlp.weights_in.")] = np.concatenate([tensor, tensors[up]])
        elif not (GATES[1] in name and name.replace(*GATES[::-1]) in tensors):
            for pattern, replacement in RENAMED.items():
                name = re.sub(pattern, replacement, name)
            found[name] = tensor
    return found


def fitted(model: dinov2.Backbone, tensors: Mapping[str, np.ndarray]) -> dinov2.Backbone:
    """config.json may not say whether there is something to put in place of masked patches."""
    mask_token = "embeddings.mask_token" in tensors
    return dataclasses.replace(model, config=dataclasses.replace(model.config, mask_token=mask_token))


def gated(width: int) -> int:
    """Of the hidden units that a plain MLP would have, two thirds, rounded up to a multiple of 8."""
    return (int(width * 2 / 3) + 7) // 8 * 8


def from_config(config: Fields, preprocessor: Fields) -> dinov2.Backbone:
    """config.json and preprocessor_config.json; an absent field has the value that transformers 5 gives it."""
    config.expect("num_channels", 3)
    registers = config.get("num_register_tokens", int, 4) if config.values.get("model_type") == KINDS[1] else 0
    width, swiglu = config.get("hidden_size", int, 768), config.get("use_swiglu_ffn", bool, False)
    hidden = int(width * config.get("mlp_ratio", float, 4))
    return dinov2.Backbone(
        vit.ViTConfig(
            image_size=config.side("image_size", 224),
            patch_size=config.side("patch_size", 16 if registers else 14),
            width=width,
            depth=config.get("num_hidden_layers", int, 12),
            num_heads=config.get("num_attention_heads", int, 12),
            hidden=gated(hidden) if swiglu else hidden,
            activation=config.one_of("hidden_act", ACTIVATIONS, "gelu"),
            epsilon=config.get("layer_norm_eps", float, 1e-6),
            resize=image_ops.resize_cubic_antialias if registers else image_ops.resize_cubic,
            registers=registers,
            mlp=vit.swiglu if swiglu else vit.plain_mlp,
            qkv_bias=config.get("qkv_bias", bool, True),
            layer_scale=config.get("layerscale_value", float, 1.0),
            init=dinov2.INIT,
            image_mean=preprocessor.colour("image_mean", dino.IMAGENET_MEAN),
            image_std=preprocessor.colour("image_std", dino.IMAGENET_STD),
        )
    )


def to_config(model: dinov2.Backbone) -> dict:
    c = model.config
    vit.only(c, READ, FORMAT)
    if c.layer_scale is None or c.pool is not vit.first_token:
        raise ValueError(f"{FORMAT} has LayerScale and the class token for its output, got {c}")
    swiglu = c.mlp is vit.swiglu
    ratios = [n for n in range(1, 17) if (gated(n * c.width) if swiglu else n * c.width) == c.hidden]
    if not ratios:
        kind = "two thirds of a multiple of width, rounded up to 8" if swiglu else "a multiple of width"
        raise ValueError(f"{FORMAT} has hidden={kind}, got hidden={c.hidden}, width={c.width}")
    registers = {"num_register_tokens": c.registers} if c.registers else {"use_mask_token": c.mask_token}
    return {
        "architectures": ["Dinov2WithRegistersModel" if c.registers else "Dinov2Model"],
        "model_type": KINDS[bool(c.registers)],
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "num_channels": 3,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "mlp_ratio": ratios[0],
        "hidden_act": activation_name(c.activation),
        "layer_norm_eps": c.epsilon,
        "qkv_bias": c.qkv_bias,
        "layerscale_value": c.layer_scale,
        "use_swiglu_ffn": swiglu,
        **registers,
    }


def to_preprocessor(model: dinov2.Backbone) -> dict:
    """As the hub's files have it: 224 pixels out of 256, whatever the size of the grid of positions."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.config.image_mean),
        "image_std": list(model.config.image_std),
    }


def resize(
    model: dinov2.Backbone, variables: dict, image_size: int, *, antialias: bool
) -> tuple[dinov2.Backbone, dict]:
    """The model for images of another size, by the rule of its config: there is no other to choose."""
    if antialias:
        raise ValueError(
            f"{FORMAT} resizes positions by its config's resize, so antialias=True has nothing to say here; replace "
            "that field for another rule"
        )
    c, params = model.config, variables["params"]
    side = image_size // c.patch_size
    table = vit.resized_positions(jnp.asarray(params["pos_embed"]), c.resize, 1, side, side)
    config = dataclasses.replace(c, image_size=image_size)
    return dataclasses.replace(model, config=config), {
        **variables, "params": {**params, "pos_embed": np.asarray(table)}
    }  # fmt: skip
