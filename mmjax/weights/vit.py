"""ViT as transformers keeps it: ViTModel and ViTForImageClassification, under the names of files and of memory.

Since transformers 5 a ViTModel in memory has other names than its file (layers.0.attention.q_proj there,
encoder.layer.0.attention.attention.query here); both are read, those of files are written. A file of a ViTModel may
lack the pooler, as those of DINO do: its pooler_output is then the class token itself.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.models import vit
from mmjax.nn.mlp import gelu, gelu_tanh, quick_gelu
from mmjax.ops import images as image_ops
from mmjax.weights.engine import CONV, Rule, Transform, linear, norm
from mmjax.weights.fields import Fields

CLASSES = {"ViTModel": vit.ViT, "ViTForImageClassification": vit.ViTForClassification}  # by `architectures`
MODEL = tuple(CLASSES.values())
FORMAT = "transformers' ViTModel"
ACTIVATIONS = {  # the first name of a function is written
    "gelu": gelu, "gelu_pytorch_tanh": gelu_tanh, "gelu_new": gelu_tanh, "quick_gelu": quick_gelu, "relu": jax.nn.relu
}  # fmt: skip
READ = {  # fields of vit.ViTConfig that this format can hold, or that only training reads
    *("image_size", "patch_size", "width", "depth", "num_heads", "hidden", "activation", "epsilon", "pool"),
    *("qkv_bias", "mask_token", "image_mean", "image_std", "resize", "init", "drop_path", "drop"),
}
ROW = Transform(lambda x: x[0], lambda x: x[None])  # [N D], which they keep as [1 N D]
TOKEN = Transform(lambda x: x[0, 0], lambda x: x[None, None])  # [D], which they keep as [1 1 D]
IGNORED = (r"^vit\.pooler\.",)  # ViTForImageClassification has none
RENAMED = {  # names in memory -> names in files
    r"(^|\.)layers\.(\d+)\.": r"\1encoder.layer.\2.",
    r"\.attention\.q_proj\.": ".attention.attention.query.",
    r"\.attention\.k_proj\.": ".attention.attention.key.",
    r"\.attention\.v_proj\.": ".attention.attention.value.",
    r"\.attention\.o_proj\.": ".attention.output.dense.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}


def RULES(model: nn.Module) -> list[Rule]:
    ours, theirs = ("vit/", "vit.") if isinstance(model, vit.ViTForClassification) else ("", "")
    c, layers, layer = model.config, f"{ours}layers", f"{theirs}encoder.layer.{{i}}"
    embeddings = f"{theirs}embeddings"
    rules = [
        Rule(f"{ours}patch_embed/kernel", f"{embeddings}.patch_embeddings.projection.weight", CONV),
        Rule(f"{ours}patch_embed/bias", f"{embeddings}.patch_embeddings.projection.bias"),
        Rule(f"{ours}class_embed", f"{embeddings}.cls_token", TOKEN),
        Rule(f"{ours}pos_embed", f"{embeddings}.position_embeddings", ROW),
        *norm(f"{layers}/norm1", f"{layer}.layernorm_before"),
        *linear(f"{layers}/attention/out", f"{layer}.attention.output.dense"),
        *norm(f"{layers}/norm2", f"{layer}.layernorm_after"),
        *linear(f"{layers}/mlp/up", f"{layer}.intermediate.dense"),
        *linear(f"{layers}/mlp/down", f"{layer}.output.dense"),
        *norm(f"{ours}norm", f"{theirs}layernorm"),
    ]
    for name in ("query", "key", "value"):
        both = linear(f"{layers}/attention/{name}", f"{layer}.attention.attention.{name}")
        rules += both if c.qkv_bias else both[:1]
    if c.mask_token:
        rules.append(Rule(f"{ours}mask_embed", f"{embeddings}.mask_token", TOKEN))
    if c.pool is vit.tanh_token:
        rules += linear(f"{ours}pooler", f"{theirs}pooler.dense")
    return rules + (linear("head", "classifier") if isinstance(model, vit.ViTForClassification) else [])


def renamed(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    def in_files(name: str) -> str:
        for pattern, replacement in RENAMED.items():
            name = re.sub(pattern, replacement, name)
        return name

    return {in_files(name): tensor for name, tensor in tensors.items()}


def fitted(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> nn.Module:
    """config.json does not say whether there are a pooler and something to put in place of masked patches."""
    mask_token = any(name.endswith("embeddings.mask_token") for name in tensors)
    pool = vit.tanh_token if "pooler.dense.weight" in tensors else vit.first_token
    return dataclasses.replace(model, config=dataclasses.replace(model.config, pool=pool, mask_token=mask_token))


def from_config(config: Fields, preprocessor: Fields) -> nn.Module:
    """config.json and preprocessor_config.json; an absent field has the value that transformers 5 gives it."""
    config.expect("num_channels", 3)
    config.expect("pooler_act", "tanh")
    architectures = config.values.get("architectures") or ["ViTModel"]
    if not isinstance(architectures, list) or architectures[0] not in CLASSES:
        raise ValueError(f"{config.where}: architectures is {architectures!r}, supported are {', '.join(CLASSES)}")
    width = config.get("hidden_size", int, 768)
    config.expect("pooler_output_size", width)
    sizes = vit.ViTConfig(
        image_size=config.side("image_size", 224),
        patch_size=config.side("patch_size", 16),
        width=width,
        depth=config.get("num_hidden_layers", int, 12),
        num_heads=config.get("num_attention_heads", int, 12),
        hidden=config.get("intermediate_size", int, 3072),
        activation=config.one_of("hidden_act", ACTIVATIONS, "gelu"),
        epsilon=config.get("layer_norm_eps", float, 1e-12),
        qkv_bias=config.get("qkv_bias", bool, True),
        image_mean=preprocessor.colour("image_mean", (0.5, 0.5, 0.5)),
        image_std=preprocessor.colour("image_std", (0.5, 0.5, 0.5)),
    )
    made = CLASSES[architectures[0]]
    return made(sizes, config.labels()) if made is vit.ViTForClassification else made(sizes)


def to_config(model: nn.Module) -> dict:
    c = model.config
    vit.only(c, READ, FORMAT)
    classifies = isinstance(model, vit.ViTForClassification)
    if c.pool not in ((vit.first_token,) if classifies else (vit.first_token, vit.tanh_token)):
        raise ValueError(f"{FORMAT} has no pool={c.pool.__name__}{' before its classes' if classifies else ''}")
    labels = {str(i): name for i, name in enumerate(model.labels)} if classifies else {}
    return {
        "architectures": [next(name for name, one in CLASSES.items() if one is type(model))],
        "model_type": "vit",
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "num_channels": 3,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.hidden,
        "hidden_act": activation_name(c.activation),
        "layer_norm_eps": c.epsilon,
        "qkv_bias": c.qkv_bias,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **({"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}} if labels else {}),
    }


def activation_name(activation: Any) -> str:
    for name, function in ACTIVATIONS.items():
        if activation is function:
            return name
    raise ValueError(f"activation {activation} has no name here; supported are {', '.join(ACTIVATIONS)}")


def to_preprocessor(model: nn.Module) -> dict:
    return square(model.config, "ViTImageProcessor", resample=2)  # bilinear


def square(c: vit.ViTConfig, processor: str, resample: int) -> dict:
    """Images resized to a square, whatever their shape."""
    return {
        "image_processor_type": processor,
        "do_resize": True,
        "size": {"height": c.image_size, "width": c.image_size},
        "resample": resample,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(c.image_mean),
        "image_std": list(c.image_std),
    }


def abstract(model: nn.Module) -> dict:
    """The variables' shapes."""
    side = model.config.image_size
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))


def resize(model: nn.Module, variables: dict, image_size: int, *, antialias: bool) -> tuple[nn.Module, dict]:
    """The model for images of another size; antialias=False is transformers' rule, True timm's."""
    params = variables["params"]
    tower = params["vit"] if isinstance(model, vit.ViTForClassification) else params
    config, tower = resized_tower(model.config, tower, image_size, antialias=antialias)
    params = {**params, "vit": tower} if isinstance(model, vit.ViTForClassification) else tower
    return dataclasses.replace(model, config=config), {**variables, "params": params}


def resized_tower(c: vit.ViTConfig, params: Mapping, image_size: int, *, antialias: bool) -> tuple[vit.ViTConfig, dict]:
    """`params` hold pos_embed; the positions of tokens that stand before the grid are kept."""
    config = dataclasses.replace(c, image_size=image_size)
    rule, side = image_ops.resize_cubic_antialias if antialias else image_ops.resize_cubic, image_size // c.patch_size
    table = vit.resized_positions(jnp.asarray(params["pos_embed"]), rule, int(c.class_token), side, side)
    return config, {**params, "pos_embed": np.asarray(table)}
