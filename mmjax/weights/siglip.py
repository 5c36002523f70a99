"""SigLIP as transformers' SiglipModel keeps it; files of SigLIP 2 at one resolution are of this kind too."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.models import siglip, vit
from mmjax.weights.clip import QKV, hf_layers
from mmjax.weights.engine import CONV, ONE, TRANSPOSE, Rule, linear, norm
from mmjax.weights.fields import Fields
from mmjax.weights.vit import ACTIVATIONS, ROW, activation_name, resized_tower, square

MODEL = siglip.SigLIP
FORMAT = "transformers' SiglipModel"
IGNORED = (r"\.embeddings\.position_ids$",)  # 0, 1, 2 ...
READ = {  # fields of vit.ViTConfig that this format can hold, or that only training reads
    *("image_size", "patch_size", "width", "depth", "num_heads", "hidden", "activation", "epsilon", "pool"),
    *("class_token", "cut", "image_mean", "image_std", "resize", "init", "drop_path", "drop"),
}
POOL = "vision_model.head"

RULES = [
    Rule("vision/patch_embed/kernel", "vision_model.embeddings.patch_embedding.weight", CONV),
    Rule("vision/patch_embed/bias", "vision_model.embeddings.patch_embedding.bias"),
    Rule("vision/pos_embed", "vision_model.embeddings.position_embedding.weight"),
    *hf_layers("vision/layers", "vision_model.encoder.layers.{i}"),
    *norm("vision/norm", "vision_model.post_layernorm"),
    Rule("vision/map/probe", f"{POOL}.probe", ROW),
    Rule(tuple(f"vision/map/attention/{name}/kernel" for name in QKV), f"{POOL}.attention.in_proj_weight", TRANSPOSE),
    Rule(tuple(f"vision/map/attention/{name}/bias" for name in QKV), f"{POOL}.attention.in_proj_bias"),
    *linear("vision/map/attention/out", f"{POOL}.attention.out_proj"),
    *norm("vision/map/norm", f"{POOL}.layernorm"),
    *linear("vision/map/mlp/up", f"{POOL}.mlp.fc1"),
    *linear("vision/map/mlp/down", f"{POOL}.mlp.fc2"),
    Rule("text/embed/embedding", "text_model.embeddings.token_embedding.weight"),
    Rule("text/pos_embed", "text_model.embeddings.position_embedding.weight"),
    *hf_layers("text/layers", "text_model.encoder.layers.{i}"),
    *norm("text/norm", "text_model.final_layer_norm"),
    *linear("text/head", "text_model.head"),
    Rule("logit_scale", "logit_scale", ONE),
    Rule("logit_bias", "logit_bias", ONE),
]


def from_config(config: Fields, preprocessor: Fields) -> siglip.SigLIP:
    """config.json and preprocessor_config.json; an absent field has the value that transformers 5 gives it."""
    vision, text = config.part("vision_config"), config.part("text_config")
    vision.expect("num_channels", 3)
    vision.expect("vision_use_head", True)
    sizes = vit.ViTConfig(
        image_size=vision.side("image_size", 224),
        patch_size=vision.side("patch_size", 16),
        **_tower(vision),
        image_mean=preprocessor.colour("image_mean", (0.5, 0.5, 0.5)),
        image_std=preprocessor.colour("image_std", (0.5, 0.5, 0.5)),
        class_token=False,
        cut=True,
        pool=vit.attention_pool,
    )
    words = siglip.TextConfig(
        vocab_size=text.get("vocab_size", int, 32_000),
        length=text.get("max_position_embeddings", int, 64),
        **_tower(text),
    )
    if (found := text.get("projection_size", int, words.width)) != sizes.width:
        raise ValueError(
            f"{config.where}: texts are embedded in {found} numbers, images in {sizes.width}; text_config's "
            "projection_size (or hidden_size) must be vision_config's hidden_size"
        )
    return siglip.SigLIP(siglip.SigLIPConfig(sizes, words))


def _tower(fields: Fields) -> dict:
    return {
        "width": fields.get("hidden_size", int, 768),
        "depth": fields.get("num_hidden_layers", int, 12),
        "num_heads": fields.get("num_attention_heads", int, 12),
        "hidden": fields.get("intermediate_size", int, 3072),
        "activation": fields.one_of("hidden_act", ACTIVATIONS, "gelu_pytorch_tanh"),
        "epsilon": fields.get("layer_norm_eps", float, 1e-6),
    }


def to_config(model: siglip.SigLIP) -> dict:
    c = model.config
    vit.only(c.vision, READ, FORMAT)
    if c.vision.class_token or c.vision.pool is not vit.attention_pool:
        raise ValueError(f"{FORMAT} has no class token and pools by attention; make its tower with siglip.tower")
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "image_size": c.vision.image_size,
            "patch_size": c.vision.patch_size,
            "num_channels": 3,
            "vision_use_head": True,
            **_fields(c.vision),
        },
        "text_config": {
            "model_type": "siglip_text_model",
            "vocab_size": c.text.vocab_size,
            "max_position_embeddings": c.text.length,
            "projection_size": c.embed_dim,
            # Unused by the model; transformers warns where its defaults lie outside of the vocabulary.
            "bos_token_id": None,
            "eos_token_id": 1,
            "pad_token_id": 1,
            **_fields(c.text),
        },
    }


def _fields(c: vit.ViTConfig | siglip.TextConfig) -> dict:
    return {
        "hidden_size": c.width,
        "intermediate_size": c.hidden,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "hidden_act": activation_name(c.activation),
        "layer_norm_eps": c.epsilon,
    }


def to_preprocessor(model: siglip.SigLIP) -> dict:
    return square(model.config.vision, "SiglipImageProcessor", resample=3)  # bicubic


def abstract(model: siglip.SigLIP) -> dict:
    """The variables' shapes."""
    c = model.config
    images = jax.ShapeDtypeStruct((1, c.vision.image_size, c.vision.image_size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images, jax.ShapeDtypeStruct((1, c.text.length), jnp.int32))


def resize(model: siglip.SigLIP, variables: dict, image_size: int, *, antialias: bool) -> tuple[siglip.SigLIP, dict]:
    """The model for images of another size; antialias=False is transformers' rule."""
    params = variables["params"]
    config, vision = resized_tower(model.config.vision, params["vision"], image_size, antialias=antialias)
    model = siglip.SigLIP(dataclasses.replace(model.config, vision=config))
    return model, {**variables, "params": {**params, "vision": vision}}
