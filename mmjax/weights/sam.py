"""SAM as transformers keeps it (SamModel), both ways, and facebookresearch/segment-anything's files, one way.

A file of theirs shows its sizes in its tensors, but for the number of heads of the decoder, which is 8 in all of those
that were published.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from mmjax.models import sam, vitdet
from mmjax.ops import images as image_ops
from mmjax.weights import engine, files
from mmjax.weights.engine import CONV, POINT, Rule, Transform, linear, norm
from mmjax.weights.fields import Fields

MODEL = sam.SAM
FORMAT = "transformers' SamModel"
IGNORED = (r"^prompt_encoder\.shared_embedding\.",)  # the same array as shared_image_embedding
QKV = ("query", "key", "value")
ROW = Transform(lambda x: x[0], lambda x: x[None])  # an embedding of one
UP = Transform(lambda x: rearrange(x, "i o h w -> h w i o"), lambda x: rearrange(x, "h w i o -> i o h w"))  # transposed
HEAD = {"in_projection": "proj_in", "middle": "layers.0", "out_projection": "proj_out"}
OFFICIAL = {  # their names -> those of transformers, in this order
    r"^image_encoder\.": "vision_encoder.",
    r"\.patch_embed\.proj\.": ".patch_embed.projection.",
    r"^vision_encoder\.blocks\.(\d+)\.norm(\d)\.": r"vision_encoder.layers.\1.layer_norm\2.",
    r"^vision_encoder\.blocks\.": "vision_encoder.layers.",
    r"\.neck\.0\.": ".neck.conv1.",
    r"\.neck\.1\.": ".neck.layer_norm1.",
    r"\.neck\.2\.": ".neck.conv2.",
    r"\.neck\.3\.": ".neck.layer_norm2.",
    r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$": "shared_image_embedding.positional_embedding",
    r"\.point_embeddings\.": ".point_embed.",
    r"\.mask_downscaling\.0\.": ".mask_embed.conv1.",
    r"\.mask_downscaling\.1\.": ".mask_embed.layer_norm1.",
    r"\.mask_downscaling\.3\.": ".mask_embed.conv2.",
    r"\.mask_downscaling\.4\.": ".mask_embed.layer_norm2.",
    r"\.mask_downscaling\.6\.": ".mask_embed.conv3.",
    r"\.transformer\.layers\.(\d+)\.norm(\d)\.": r".transformer.layers.\1.layer_norm\2.",
    r"\.norm_final_attn\.": ".layer_norm_final_attn.",
    r"\.output_upscaling\.0\.": ".upscale_conv1.",
    r"\.output_upscaling\.1\.": ".upscale_layer_norm.",
    r"\.output_upscaling\.3\.": ".upscale_conv2.",
    r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0\.": r"\1.proj_in.",
    r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.1\.": r"\1.layers.0.",
    r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.2\.": r"\1.proj_out.",
}


def RULES(model: sam.SAM) -> list[Rule]:
    return _vision_rules(model.config.vision) + _prompt_rules() + _decoder_rules(model.config)


def _vision_rules(c: vitdet.ViTDetConfig) -> list[Rule]:
    theirs, rules = "vision_encoder", []
    for i, run in enumerate(c.runs):
        ours, layer = f"vision/run{i}/layers", f"{theirs}.layers.{{i}}"
        attention = f"{ours}/attention"
        layers = [
            *norm(f"{ours}/norm1", f"{layer}.layer_norm1"),
            *norm(f"{ours}/norm2", f"{layer}.layer_norm2"),
            Rule(tuple(f"{attention}/{x}/kernel" for x in QKV), f"{layer}.attn.qkv.weight", engine.TRANSPOSE),
            Rule(tuple(f"{attention}/{x}/bias" for x in QKV), f"{layer}.attn.qkv.bias"),
            *linear(f"{attention}/out", f"{layer}.attn.proj"),
            *(Rule(f"{attention}/{x}", f"{layer}.attn.{x}") for x in ("rel_pos_h", "rel_pos_w")),
            *linear(f"{ours}/mlp/up", f"{layer}.mlp.lin1"),
            *linear(f"{ours}/mlp/down", f"{layer}.mlp.lin2"),
        ]
        rules += [dataclasses.replace(rule, first=run.first) for rule in layers]
    return [
        Rule("vision/patch_embed/kernel", f"{theirs}.patch_embed.projection.weight", CONV),
        Rule("vision/patch_embed/bias", f"{theirs}.patch_embed.projection.bias"),
        Rule("vision/pos_embed", f"{theirs}.pos_embed", ROW),
        *rules,
        Rule("vision/neck1/kernel", f"{theirs}.neck.conv1.weight", POINT),
        *norm("vision/neck_norm1", f"{theirs}.neck.layer_norm1"),
        Rule("vision/neck_conv2/kernel", f"{theirs}.neck.conv2.weight", CONV),
        *norm("vision/neck_norm2", f"{theirs}.neck.layer_norm2"),
    ]


def _prompt_rules() -> list[Rule]:
    ours, theirs = "prompt", "prompt_encoder"
    masks = (f"{ours}/mask_embed", f"{theirs}.mask_embed")
    rules = [
        Rule(f"{ours}/frequencies", "shared_image_embedding.positional_embedding"),
        Rule(f"{ours}/point_embed", f"{theirs}.point_embed.{{i}}.weight", ROW),
        Rule(f"{ours}/not_a_point", f"{theirs}.not_a_point_embed.weight", ROW),
        Rule(f"{ours}/no_mask", f"{theirs}.no_mask_embed.weight", ROW),
    ]
    for i, transform in ((1, CONV), (2, CONV), (3, POINT)):
        rules.append(Rule(f"{masks[0]}/conv{i}/kernel", f"{masks[1]}.conv{i}.weight", transform))
        rules.append(Rule(f"{masks[0]}/conv{i}/bias", f"{masks[1]}.conv{i}.bias"))
    return rules + [rule for i in (1, 2) for rule in norm(f"{masks[0]}/norm{i}", f"{masks[1]}.layer_norm{i}")]


def _attention(ours: str, theirs: str) -> list[Rule]:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    return [rule for our, their in names.items() for rule in linear(f"{ours}/{our}", f"{theirs}.{their}")]


def _decoder_rules(c: sam.SamConfig) -> list[Rule]:
    ours, theirs = "decoder", "mask_decoder"
    transformer = f"{theirs}.transformer"
    rules = [
        Rule(f"{ours}/iou_token", f"{theirs}.iou_token.weight"),
        Rule(f"{ours}/mask_tokens", f"{theirs}.mask_tokens.weight"),
        *_attention(f"{ours}/final_attention", f"{transformer}.final_attn_token_to_image"),
        *norm(f"{ours}/norm", f"{transformer}.layer_norm_final_attn"),
        *norm(f"{ours}/up_norm", f"{theirs}.upscale_layer_norm"),
    ]
    for i in (1, 2):
        rules.append(Rule(f"{ours}/up{i}/kernel", f"{theirs}.upscale_conv{i}.weight", UP))
        rules.append(Rule(f"{ours}/up{i}/bias", f"{theirs}.upscale_conv{i}.bias"))
    for our, their in HEAD.items():
        rules += linear(f"{ours}/mask_heads/{our}", f"{theirs}.output_hypernetworks_mlps.{{i}}.{their}")
        rules += linear(f"{ours}/iou_head/{our}", f"{theirs}.iou_prediction_head.{their}")
    for i in range(c.depth):
        block, layer = f"{ours}/block{i}", f"{transformer}.layers.{i}"
        rules += _attention(f"{block}/self_attention", f"{layer}.self_attn")
        rules += _attention(f"{block}/token_to_image", f"{layer}.cross_attn_token_to_image")
        rules += _attention(f"{block}/image_to_token", f"{layer}.cross_attn_image_to_token")
        rules += [rule for n in range(1, 5) for rule in norm(f"{block}/norm{n}", f"{layer}.layer_norm{n}")]
        rules += linear(f"{block}/mlp/up", f"{layer}.mlp.lin1") + linear(f"{block}/mlp/down", f"{layer}.mlp.lin2")
    return rules


def from_config(config: Fields, preprocessor: Fields) -> sam.SAM:
    """config.json and preprocessor_config.json; an absent field has the value that transformers 5 gives it."""
    vision, prompt, decoder = (
        Fields(config.get(name, dict, {}), f"{config.where}: {name}")
        for name in ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    )
    dim = prompt.get("hidden_size", int, 256)
    width, side = vision.get("hidden_size", int, 768), vision.side("image_size", 1024)
    patch = vision.side("patch_size", 16)
    only = {"num_channels": 3, "hidden_act": "gelu", "qkv_bias": True, "use_abs_pos": True, "use_rel_pos": True}
    only |= {"num_pos_feats": dim // 2, "output_channels": dim}
    for name, value in only.items():
        vision.expect(name, value)
    known = {"image_size": side, "patch_size": patch, "hidden_act": "gelu", "num_point_embeddings": 4}
    for name, value in (known | {"layer_norm_eps": 1e-6}).items():
        prompt.expect(name, value)
    for name, value in {"hidden_size": dim, "hidden_act": "relu", "iou_head_depth": 3}.items():
        decoder.expect(name, value)
    return sam.SAM(
        sam.SamConfig(
            vision=vitdet.ViTDetConfig(
                image_size=side,
                patch_size=patch,
                width=width,
                depth=vision.get("num_hidden_layers", int, 12),
                num_heads=vision.get("num_attention_heads", int, 12),
                hidden=vision.get("mlp_dim", int, int(width * vision.get("mlp_ratio", float, 4.0))),
                window=vision.get("window_size", int, 14),
                global_layers=tuple(vision.get("global_attn_indexes", list, [2, 5, 8, 11])),
                epsilon=vision.get("layer_norm_eps", float, 1e-6),
            ),
            dim=dim,
            mask_channels=prompt.get("mask_input_channels", int, 16),
            depth=decoder.get("num_hidden_layers", int, 2),
            num_heads=decoder.get("num_attention_heads", int, 8),
            hidden=decoder.get("mlp_dim", int, 2048),
            downsample=decoder.get("attention_downsample_rate", int, 2),
            num_masks=decoder.get("num_multimask_outputs", int, 3),
            iou_hidden=decoder.get("iou_head_hidden_dim", int, 256),
            epsilon=decoder.get("layer_norm_eps", float, 1e-6),
            image_mean=preprocessor.colour("image_mean", sam.SamConfig.image_mean),
            image_std=preprocessor.colour("image_std", sam.SamConfig.image_std),
        )
    )


def to_config(model: sam.SAM) -> dict:
    c, v = model.config, model.config.vision
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "image_size": v.image_size,
            "patch_size": v.patch_size,
            "hidden_size": v.width,
            "num_hidden_layers": v.depth,
            "num_attention_heads": v.num_heads,
            "mlp_dim": v.hidden,
            "mlp_ratio": v.hidden / v.width,
            "window_size": v.window,
            "global_attn_indexes": list(v.global_layers),
            "layer_norm_eps": v.epsilon,
            "output_channels": c.dim,
            "num_pos_feats": c.dim // 2,
        },
        "prompt_encoder_config": {
            "hidden_size": c.dim,
            "image_size": v.image_size,
            "patch_size": v.patch_size,
            "mask_input_channels": c.mask_channels,
        },
        "mask_decoder_config": {
            "hidden_size": c.dim,
            "num_hidden_layers": c.depth,
            "num_attention_heads": c.num_heads,
            "mlp_dim": c.hidden,
            "attention_downsample_rate": c.downsample,
            "num_multimask_outputs": c.num_masks,
            "iou_head_hidden_dim": c.iou_hidden,
            "layer_norm_eps": c.epsilon,
        },
    }


def to_preprocessor(model: sam.SAM) -> dict:
    side, low = model.config.vision.image_size, 4 * model.config.vision.grid
    return {
        "image_processor_type": "SamImageProcessor",
        "do_resize": True,
        "size": {"longest_edge": side},
        "mask_size": {"longest_edge": low},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(model.config.image_mean),
        "image_std": list(model.config.image_std),
        "do_pad": True,
        "pad_size": {"height": side, "width": side},
        "mask_pad_size": {"height": low, "width": low},
    }


def abstract(model: sam.SAM) -> dict:
    """The variables' shapes."""
    side = model.config.vision.image_size
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32))


def resize(model: sam.SAM, variables: dict, image_size: int, *, antialias: bool) -> tuple[sam.SAM, dict]:
    """The model for squares of another size: positions and the tables of layers that look at everything, linear between
    centres (the tables as the originals do it while they run; positions they leave alone). No antialias either way."""
    c = model.config
    vision = dataclasses.replace(c.vision, image_size=image_size)
    tower, between = dict(variables["params"]["vision"]), image_ops.resize_linear
    table = jnp.asarray(tower["pos_embed"])
    for axis in (1, 0):  # rows of each column, then the other way
        table = jax.vmap(lambda line: between(line, vision.grid), axis, axis)(table)
    tower["pos_embed"] = np.asarray(table)
    for i, run in enumerate(vision.runs):
        if run.window is None:
            layers = tower[f"run{i}"]["layers"]
            tables = {
                name: np.stack([between(jnp.asarray(x), 2 * vision.grid - 1) for x in layers["attention"][name]])
                for name in ("rel_pos_h", "rel_pos_w")
            }
            tower[f"run{i}"] = {"layers": {**layers, "attention": {**layers["attention"], **tables}}}
    params = {**variables["params"], "vision": tower}
    return sam.SAM(dataclasses.replace(c, vision=vision)), {**variables, "params": params}


def load_sam(
    path: str | Path, *, dtype: Any = jnp.float32, image_size: int | None = None, num_heads: int = 8,
    shardings: engine.Shardings | None = None,
) -> tuple[sam.SAM, dict]:  # fmt: skip
    """The model of facebookresearch/segment-anything's file (sam_vit_b_01ec64.pth and its like), and its variables.

    image_size: see `resize`. num_heads: of the decoder."""
    path = Path(path)
    tensors = {_in_transformers(name): x for name, x in files.read(path).items()}
    model = _fitting(tensors, path, num_heads)
    return engine.load_model(
        model, abstract, RULES(model), tensors,
        format="segment-anything's SAM", source=path, dtype=dtype, shardings=shardings, ignored=(),
        resize=None if image_size is None else lambda *loaded: resize(*loaded, image_size, antialias=False),
    )  # fmt: skip


def _in_transformers(name: str) -> str:
    for pattern, replacement in OFFICIAL.items():
        name = re.sub(pattern, replacement, name)
    return name


def _fitting(tensors: Mapping[str, np.ndarray], path: Path, num_heads: int) -> sam.SAM:
    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != rank:
            found = f"is {list(tensors[name].shape)}" if name in tensors else "is missing"
            raise ValueError(f"{path} is no SAM of segment-anything: {name} {found}, expected {rank} axes")
        return tensors[name].shape

    def count(pattern: str) -> int:
        return 1 + max((int(found[1]) for name in tensors if (found := re.match(pattern, name))), default=-1)

    layers, block = "vision_encoder.layers", "mask_decoder.transformer.layers.0"
    width, _, patch, _ = shape("vision_encoder.patch_embed.projection.weight", 4)
    _, grid, _, _ = shape("vision_encoder.pos_embed", 4)
    tables = [shape(f"{layers}.{i}.attn.rel_pos_h", 2) for i in range(count(r"vision_encoder\.layers\.(\d+)\."))]
    window = min((length + 1) // 2 for length, _ in tables)
    vision = vitdet.ViTDetConfig(
        grid * patch, patch, width, len(tables), width // tables[0][1], shape(f"{layers}.0.mlp.lin1.weight", 2)[0],
        window, tuple(i for i, (length, _) in enumerate(tables) if (length + 1) // 2 != window),
    )  # fmt: skip
    inner, dim = shape(f"{block}.cross_attn_token_to_image.q_proj.weight", 2)
    return sam.SAM(
        sam.SamConfig(
            vision,
            dim=dim,
            mask_channels=shape("prompt_encoder.mask_embed.conv2.weight", 4)[0],
            depth=count(r"mask_decoder\.transformer\.layers\.(\d+)\."),
            num_heads=num_heads,
            hidden=shape(f"{block}.mlp.lin1.weight", 2)[0],
            downsample=dim // inner,
            num_masks=shape("mask_decoder.mask_tokens.weight", 2)[0] - 1,
            iou_hidden=shape("mask_decoder.iou_prediction_head.proj_in.weight", 2)[0],
        )
    )
