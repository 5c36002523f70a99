"""CLIP under the names of openai/CLIP and open_clip: the same numbers as transformers' CLIPModel.

They keep projections as they are multiplied, and query, key and value as blocks of rows of one tensor. The sizes are
read from the tensors; what tensors don't show stands in open_clip_config.json beside them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from mmjax.models import clip, vit
from mmjax.nn.mlp import gelu, quick_gelu
from mmjax.weights import clip as names
from mmjax.weights import engine, files
from mmjax.weights.engine import SAME, TRANSPOSE, Rule, linear, norm
from mmjax.weights.fields import Fields

FORMAT = "open_clip's CLIP"
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
CONSUMED = {  # fields of open_clip_config.json that are read below, shown by the tensors, or about training and text
    "vision_cfg": "image_size layers width patch_size head_width mlp_ratio patch_dropout output_tokens",
    "text_cfg": "context_length vocab_size width heads layers mlp_ratio output_tokens hf_tokenizer_name "
    "tokenizer_kwargs",
}


def _layers(ours: str, theirs: str) -> list[Rule]:
    query, attn = tuple(f"{ours}/attention/{name}" for name in names.QKV), f"{theirs}.attn"
    return [
        *norm(f"{ours}/norm1", f"{theirs}.ln_1"),
        Rule(tuple(f"{one}/kernel" for one in query), f"{attn}.in_proj_weight", TRANSPOSE),
        Rule(tuple(f"{one}/bias" for one in query), f"{attn}.in_proj_bias"),
        *linear(f"{ours}/attention/out", f"{attn}.out_proj"),
        *norm(f"{ours}/norm2", f"{theirs}.ln_2"),
        *linear(f"{ours}/mlp/up", f"{theirs}.mlp.c_fc"),
        *linear(f"{ours}/mlp/down", f"{theirs}.mlp.c_proj"),
    ]


RULES = names.rules(
    _layers,
    SAME,
    {
        "vision/patch_embed": "visual.conv1.weight",
        "vision/class_embed": "visual.class_embedding",
        "vision/pos_embed": "visual.positional_embedding",
        "vision/norm_pre": "visual.ln_pre",
        "vision/layers": "visual.transformer.resblocks.{i}",
        "vision/norm": "visual.ln_post",
        "vision_projection": "visual.proj",
        "text/embed": "token_embedding.weight",
        "text/pos_embed": "positional_embedding",
        "text/layers": "transformer.resblocks.{i}",
        "text/norm": "ln_final",
        "text_projection": "text_projection",
    },
)
IGNORED = (r"^(input_resolution|context_length|vocab_size|attn_mask)$",)  # sizes and a mask, kept as buffers


def load_openai(
    path: str | Path, *, dtype: Any = jnp.float32, image_size: int | None = None, quick_gelu: bool | None = None,
    shardings: engine.Shardings | None = None,
) -> tuple[clip.CLIP, dict]:  # fmt: skip
    """The model of openai/CLIP's or open_clip's file (.safetensors, .pt, .bin) or folder, and its variables.

    image_size: resizes the positions as open_clip's loader does. quick_gelu: the activation, where no
    open_clip_config.json beside the file names it (True: OpenAI's own; most later files have False).
    """
    path = Path(path)
    path = path / WEIGHTS if path.is_dir() else path
    tensors = files.read(path)
    model = _model(tensors, path, _config(path, quick_gelu))
    return engine.load_model(
        model, names.abstract, RULES, tensors, format=FORMAT, source=path, dtype=dtype, shardings=shardings,
        ignored=IGNORED,
        resize=None if image_size is None else lambda *loaded: names.resize(*loaded, image_size, antialias=True),
    )  # fmt: skip


def save_openai(folder: str | Path, model: clip.CLIP, variables: Mapping) -> None:
    """What `open_clip.create_model("local-dir:FOLDER")` reads. Parameters keep their dtype."""
    folder = Path(folder)
    config, tensors = _to_config(model), engine.save(RULES, variables["params"], format=FORMAT)
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / WEIGHTS, tensors)
    files.write_json(folder / CONFIG, config)


def _config(path: Path, quick: bool | None) -> Fields:
    """open_clip_config.json beside the file, or OpenAI's."""
    where = path.parent / CONFIG
    if not where.exists():
        return Fields({"model_cfg": {"quick_gelu": quick is not False, "vision_cfg": {}, "text_cfg": {}}}, str(where))
    config = Fields(files.read_json(where), str(where))
    model = config.part("model_cfg")
    for tower, consumed in CONSUMED.items():
        for field, value in model.part(tower).values.items():
            if value and field not in consumed.split():
                raise ValueError(f"{where}: {tower}: {field} is {value!r}, which CLIP does not have")
    stated = model.get("quick_gelu", bool, False)
    if quick is not None and quick != stated:
        raise ValueError(f"quick_gelu={quick} contradicts {where}, which has {stated}; leave the argument out")
    return config


def _model(tensors: Mapping[str, np.ndarray], path: Path, config: Fields) -> clip.CLIP:
    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != rank:
            found = f"is {list(tensors[name].shape)}" if name in tensors else "is missing"
            raise ValueError(f"{path} is no ViT-CLIP of OpenAI or open_clip: {name} {found}, expected {rank} axes")
        return tensors[name].shape

    def depth(prefix: str) -> int:
        found = [re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in tensors]
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    model = config.part("model_cfg")
    activation = quick_gelu if model.get("quick_gelu", bool, False) else gelu
    width, _, patch, _ = shape("visual.conv1.weight", 4)
    side = patch * round((shape("visual.positional_embedding", 2)[0] - 1) ** 0.5)
    vocab_size, text_width = shape("token_embedding.weight", 2)
    preprocess = config.part("preprocess_cfg") if "preprocess_cfg" in config.values else Fields({}, config.where)
    layers, text_layers = "visual.transformer.resblocks", "transformer.resblocks"
    vision = vit.ViTConfig(
        side, patch, width, depth(layers),
        width // model.part("vision_cfg").get("head_width", int, 64),
        shape(f"{layers}.0.mlp.c_fc.weight", 2)[0], activation, 1e-5,
    )  # fmt: skip
    text = clip.TextConfig(
        vocab_size, shape("positional_embedding", 2)[0], text_width, depth(text_layers),
        model.part("text_cfg").get("heads", int, text_width // 64),
        shape(f"{text_layers}.0.mlp.c_fc.weight", 2)[0], activation, 1e-5,
    )  # fmt: skip
    mean = preprocess.colour("mean", clip.OPENAI_MEAN)
    std = preprocess.colour("std", clip.OPENAI_STD)
    return clip.CLIP(clip.CLIPConfig(vision, text, shape("visual.proj", 2)[1], mean, std))


def _to_config(model: clip.CLIP) -> dict:
    c = model.config
    activations = {names.activation_name(c.vision), names.activation_name(c.text)}
    if len(activations) > 1 or {c.vision.epsilon, c.text.epsilon} != {1e-5} or c.vision.width % c.vision.num_heads:
        raise ValueError(f"{FORMAT} has one activation for both towers and epsilon 1e-5, got {c.vision} and {c.text}")
    if c.text.eos_id not in (None, c.text.vocab_size - 1):
        raise ValueError(f"{FORMAT} reads the text at its highest id, got eos_id {c.text.eos_id}")
    return {
        "model_cfg": {
            "embed_dim": c.embed_dim,
            "quick_gelu": activations == {"quick_gelu"},
            "vision_cfg": {
                "image_size": c.vision.image_size,
                "patch_size": c.vision.patch_size,
                "width": c.vision.width,
                "layers": c.vision.depth,
                "head_width": c.vision.width // c.vision.num_heads,
                "mlp_ratio": _ratio(c.vision),
            },
            "text_cfg": {
                "context_length": c.text.length,
                "vocab_size": c.text.vocab_size,
                "width": c.text.width,
                "layers": c.text.depth,
                "heads": c.text.num_heads,
                "mlp_ratio": _ratio(c.text),
            },
        },
        "preprocess_cfg": {"mean": list(c.image_mean), "std": list(c.image_std)},
    }


def _ratio(c: vit.ViTConfig | clip.TextConfig) -> float:
    """open_clip takes int(width * ratio), so a ratio that is no whole number must not fall short."""
    return c.hidden / c.width if c.hidden % c.width == 0 else (c.hidden + 0.5) / c.width
