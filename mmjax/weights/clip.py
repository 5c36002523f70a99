"""CLIP as transformers' CLIPModel keeps it. openai/CLIP's and open_clip's names are in open_clip.py."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from mmjax.models import clip, vit
from mmjax.nn.mlp import gelu, quick_gelu
from mmjax.weights.engine import CONV, TRANSPOSE, Rule, Transform, linear, norm
from mmjax.weights.fields import Fields
from mmjax.weights.vit import resized_tower

MODEL = clip.CLIP
FORMAT = "transformers' CLIPModel"
ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}
HIGHEST_ID = 2  # transformers reads this eos_token_id, wrong in old files, as "the highest id of the row"
START = 49406  # of a text, in OpenAI's vocabulary
QKV = ("query", "key", "value")


def hf_layers(ours: str, theirs: str) -> list[Rule]:
    rules = [*norm(f"{ours}/norm1", f"{theirs}.layer_norm1"), *norm(f"{ours}/norm2", f"{theirs}.layer_norm2")]
    for name in QKV:
        rules += linear(f"{ours}/attention/{name}", f"{theirs}.self_attn.{name[0]}_proj")
    rules += linear(f"{ours}/attention/out", f"{theirs}.self_attn.out_proj")
    return rules + linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1") + linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2")


def rules(layers: Callable[[str, str], list[Rule]], projection: Transform, names: Mapping[str, str]) -> list[Rule]:
    """`names` by our path; each format has its own way with layers and projections."""
    return [
        Rule("vision/patch_embed/kernel", names["vision/patch_embed"], CONV),
        Rule("vision/class_embed", names["vision/class_embed"]),
        Rule("vision/pos_embed", names["vision/pos_embed"]),
        *norm("vision/norm_pre", names["vision/norm_pre"]),
        *layers("vision/layers", names["vision/layers"]),
        *norm("vision/norm", names["vision/norm"]),
        Rule("vision_projection/kernel", names["vision_projection"], projection),
        Rule("text/embed/embedding", names["text/embed"]),
        Rule("text/pos_embed", names["text/pos_embed"]),
        *layers("text/layers", names["text/layers"]),
        *norm("text/norm", names["text/norm"]),
        Rule("text_projection/kernel", names["text_projection"], projection),
        Rule("logit_scale", "logit_scale"),
    ]


RULES = rules(
    hf_layers,
    TRANSPOSE,
    {
        "vision/patch_embed": "vision_model.embeddings.patch_embedding.weight",
        "vision/class_embed": "vision_model.embeddings.class_embedding",
        "vision/pos_embed": "vision_model.embeddings.position_embedding.weight",
        "vision/norm_pre": "vision_model.pre_layrnorm",  # spelled so
        "vision/layers": "vision_model.encoder.layers.{i}",
        "vision/norm": "vision_model.post_layernorm",
        "vision_projection": "visual_projection.weight",
        "text/embed": "text_model.embeddings.token_embedding.weight",
        "text/pos_embed": "text_model.embeddings.position_embedding.weight",
        "text/layers": "text_model.encoder.layers.{i}",
        "text/norm": "text_model.final_layer_norm",
        "text_projection": "text_projection.weight",
    },
)
IGNORED = (r"\.embeddings\.position_ids$",)  # 0, 1, 2 ... in files of transformers < 4.31


def from_config(config: Fields, preprocessor: Fields) -> clip.CLIP:
    """config.json and preprocessor_config.json; an absent field has the value that transformers 5 gives it."""
    vision, text = _tower(config, "vision_config"), _tower(config, "text_config")
    eos_id = text.get("eos_token_id", int, 49407)
    return clip.CLIP(
        clip.CLIPConfig(
            vision=tower_from(vision),
            text=clip.TextConfig(
                vocab_size=text.get("vocab_size", int, 49408),
                length=text.get("max_position_embeddings", int, 77),
                width=text.get("hidden_size", int, 512),
                depth=text.get("num_hidden_layers", int, 12),
                num_heads=text.get("num_attention_heads", int, 8),
                hidden=text.get("intermediate_size", int, 2048),
                activation=text.one_of("hidden_act", ACTIVATIONS, "quick_gelu"),
                epsilon=text.get("layer_norm_eps", float, 1e-5),
                eos_id=None if eos_id == HIGHEST_ID else eos_id,
            ),
            embed_dim=config.get("projection_dim", int, 512),
            image_mean=preprocessor.colour("image_mean", clip.OPENAI_MEAN),
            image_std=preprocessor.colour("image_std", clip.OPENAI_STD),
        )
    )


def tower_from(vision: Fields) -> vit.ViTConfig:
    """What sees, from a CLIPVisionConfig."""
    vision.expect("num_channels", 3)
    return vit.ViTConfig(
        image_size=vision.side("image_size", 224),
        patch_size=vision.side("patch_size", 32),
        width=vision.get("hidden_size", int, 768),
        depth=vision.get("num_hidden_layers", int, 12),
        num_heads=vision.get("num_attention_heads", int, 12),
        hidden=vision.get("intermediate_size", int, 3072),
        activation=vision.one_of("hidden_act", ACTIVATIONS, "quick_gelu"),
        epsilon=vision.get("layer_norm_eps", float, 1e-5),
    )


def to_config(model: clip.CLIP) -> dict:
    c = model.config
    if c.text.eos_id == HIGHEST_ID:
        raise ValueError(
            f"text.eos_id {HIGHEST_ID} cannot be written for transformers, which reads it as the highest id of a row; "
            "use another id, or None where the end-of-text id is the highest"
        )
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": c.embed_dim,
        "vision_config": {**vision_config(c.vision), "projection_dim": c.embed_dim},
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": c.text.vocab_size,
            "max_position_embeddings": c.text.length,
            # Unused by the model; transformers warns where its default lies outside of the vocabulary.
            "bos_token_id": START if c.text.vocab_size > START else None,
            "eos_token_id": HIGHEST_ID if c.text.eos_id is None else c.text.eos_id,
            "projection_dim": c.embed_dim,
            **_tower_fields(c.text),
        },
    }


def to_preprocessor(model: clip.CLIP) -> dict:
    c = model.config
    return preprocessor(c.vision.image_size, c.image_mean, c.image_std)


def preprocessor(side: int, mean: Sequence[float], std: Sequence[float]) -> dict:
    """Of a tower that OpenAI's transform feeds."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }


def _tower(config: Fields, name: str) -> Fields:
    legacy = f"{name}_dict"  # where a file of 2022 has it, it wins
    return config.part(legacy if config.values.get(legacy) is not None else name)


def vision_config(c: vit.ViTConfig) -> dict:
    """A CLIPVisionConfig of what sees."""
    sizes = {"image_size": c.image_size, "patch_size": c.patch_size, "num_channels": 3}
    return {"model_type": "clip_vision_model", **sizes, **_tower_fields(c)}


def _tower_fields(c: vit.ViTConfig | clip.TextConfig) -> dict:
    return {
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "hidden_act": activation_name(c),
        "layer_norm_eps": c.epsilon,
    }


def activation_name(c: vit.ViTConfig | clip.TextConfig) -> str:
    for name, function in ACTIVATIONS.items():
        if c.activation is function:
            return name
    raise ValueError(f"activation {c.activation} has no name here; supported are {', '.join(ACTIVATIONS)}")


def abstract(model: clip.CLIP) -> dict:
    """The variables' shapes."""
    c = model.config
    images = jax.ShapeDtypeStruct((1, c.vision.image_size, c.vision.image_size, 3), jnp.float32)
    input_ids = jax.ShapeDtypeStruct((1, c.text.length), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), images, input_ids)


def resize(model: clip.CLIP, variables: dict, image_size: int, *, antialias: bool) -> tuple[clip.CLIP, dict]:
    """The model for images of another size: the grid of positions is resized, bicubic, the class token's is kept.

    antialias=False is what transformers computes with interpolate_pos_encoding=True, True what open_clip's loader does.
    """
    params = variables["params"]
    config, vision = resized_tower(model.config.vision, params["vision"], image_size, antialias=antialias)
    model = clip.CLIP(dataclasses.replace(model.config, vision=config))
    return model, {**variables, "params": {**params, "vision": vision}}
