"""BLIP-2 as transformers keeps it: a bare Q-Former, retrieval (stage 1 without its captions), generation (stage 2).

Files of the first releases lack two things that transformers has meanwhile put into config.json, and without which it
does not know where a picture stands: image_token_index, and the row of the language model's table that goes with it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.models import blip2, llama, llava, qformer, vit
from mmjax.models.clip import OPENAI_MEAN, OPENAI_STD
from mmjax.nn.mlp import gelu, gelu_tanh, quick_gelu
from mmjax.weights import llama as llama_weights
from mmjax.weights.engine import CONV, TRANSPOSE, Rule, linear, norm
from mmjax.weights.fields import Fields
from mmjax.weights.vit import ROW, TOKEN, resized_tower

FORMAT = "transformers' BLIP-2"
CLASSES = {  # by `architectures` of config.json
    "Blip2QFormerModel": qformer.QFormer,
    "Blip2ForImageTextRetrieval": qformer.Blip2Retrieval,
    "Blip2ForConditionalGeneration": blip2.Blip2,
}
MODEL = tuple(CLASSES.values())
ACTIVATIONS = {"gelu": gelu, "gelu_new": gelu_tanh, "quick_gelu": quick_gelu, "relu": jax.nn.relu}
IGNORED = (r"embeddings\.position_ids$", r"\.rotary_emb\.inv_freq$")
QKV = ("query", "key", "value")
READ = {  # fields of vit.ViTConfig that this format can hold, or that only training reads
    *("image_size", "patch_size", "width", "depth", "num_heads", "hidden", "activation", "epsilon", "qkv_bias"),
    *("image_mean", "image_std", "resize", "init", "drop_path", "drop"),
}


def _vision(ours: str, c: vit.ViTConfig) -> list[Rule]:
    layers, layer, embeddings = f"{ours}/layers", "vision_model.encoder.layers.{i}", "vision_model.embeddings"
    parts = lambda kind: tuple(f"{layers}/attention/{name}/{kind}" for name in QKV)  # noqa: E731
    return [
        Rule(f"{ours}/patch_embed/kernel", f"{embeddings}.patch_embedding.weight", CONV),
        Rule(f"{ours}/patch_embed/bias", f"{embeddings}.patch_embedding.bias"),
        Rule(f"{ours}/class_embed", f"{embeddings}.class_embedding", TOKEN),
        Rule(f"{ours}/pos_embed", f"{embeddings}.position_embedding", ROW),
        *norm(f"{layers}/norm1", f"{layer}.layer_norm1"),
        Rule(parts("kernel"), f"{layer}.self_attn.qkv.weight", TRANSPOSE),
        *([Rule(parts("bias"), f"{layer}.self_attn.qkv.bias")] if c.qkv_bias else []),
        *linear(f"{layers}/attention/out", f"{layer}.self_attn.projection"),
        *norm(f"{layers}/norm2", f"{layer}.layer_norm2"),
        *linear(f"{layers}/mlp/up", f"{layer}.mlp.fc1"),
        *linear(f"{layers}/mlp/down", f"{layer}.mlp.fc2"),
        *norm(f"{ours}/norm", "vision_model.post_layernorm"),
    ]


def _block(ours: str, theirs: str, crosses: bool, text: bool) -> list[Rule]:
    def attention(our: str, their: str, last: str) -> list[Rule]:
        inner = [rule for name in QKV for rule in linear(f"{ours}/{our}/{name}", f"{theirs}.{their}.attention.{name}")]
        out = linear(f"{ours}/{our}/out", f"{theirs}.{their}.output.dense")
        return inner + out + norm(f"{ours}/{last}", f"{theirs}.{their}.output.LayerNorm")

    def mlp(our: str, up: str, down: str) -> list[Rule]:
        first = linear(f"{ours}/{our}_mlp/up", f"{theirs}.{up}.dense")
        last = linear(f"{ours}/{our}_mlp/down", f"{theirs}.{down}.dense")
        return first + last + norm(f"{ours}/{our}_norm", f"{theirs}.{down}.LayerNorm")

    rules = attention("attention", "attention", "norm1") + mlp("query", "intermediate_query", "output_query")
    rules += attention("cross", "crossattention", "cross_norm") if crosses else []
    return rules + (mlp("text", "intermediate", "output") if text else [])


def qformer_rules(ours: str, theirs: str, c: qformer.QFormerConfig) -> list[Rule]:
    """Our periods are scanned: block i of period p is their layer p * cross_every + i."""
    rules, layer = norm(f"{ours}norm", f"{theirs}layernorm"), f"{theirs}encoder.layer."
    every, whole = c.cross_every, c.depth - c.depth % c.cross_every
    for i in range(every):
        block = _block(f"{ours}layers/block{i}", f"{layer}{{i}}", i == 0, c.text)
        rules += [dataclasses.replace(rule, first=i, step=every) for rule in block]
    for i in range(c.depth - whole):
        rules += _block(f"{ours}rest/block{i}", f"{layer}{whole + i}", i == 0, c.text)
    return rules


def RULES(model: nn.Module) -> list[Rule]:
    c = model.config
    if isinstance(model, qformer.QFormer):
        return qformer_rules("", "", c)
    if isinstance(model, blip2.Blip2):
        language = [
            dataclasses.replace(rule, ours=f"language/{rule.ours}", theirs=f"language_model.{rule.theirs}")
            for rule in llama_weights.RULES(llama.Llama(c.language))
        ]
        return [
            *_vision("vision/tower", c.vision),
            Rule("vision/query_tokens", "query_tokens", ROW),
            *qformer_rules("vision/qformer/", "qformer.", _asked(model)),
            *linear("projector", "language_projection"),
            *language,
        ]
    return [
        *_vision("vision", c.vision),
        Rule("query_tokens", "query_tokens", ROW),
        Rule("embed/embedding", "embeddings.word_embeddings.weight"),
        Rule("pos_embed", "embeddings.position_embeddings.weight"),
        *qformer_rules("qformer/", "qformer.", c.qformer),
        *linear("vision_projection", "vision_projection"),
        *linear("text_projection", "text_projection"),
        *linear("itm_head", "itm_head"),
    ]


def _asked(model: blip2.Blip2) -> qformer.QFormerConfig:
    c = model.config
    if not isinstance(c.see, blip2.Ask) or c.projector is not llava.linear:
        raise ValueError(f"{FORMAT} sees by a Q-Former and one layer; make the config with models.blip2.blip2")
    return c.see.qformer


def from_config(config: Fields, preprocessor: Fields) -> nn.Module:
    """config.json and preprocessor_config.json; an absent field has the value that transformers 5 gives it."""
    bare = config.values.get("model_type") == "blip_2_qformer"
    default = "Blip2QFormerModel" if bare else "Blip2ForConditionalGeneration"
    architectures = config.values.get("architectures") or [default]
    if not isinstance(architectures, list) or architectures[0] not in CLASSES:
        raise ValueError(f"{config.where}: architectures is {architectures!r}, supported are {', '.join(CLASSES)}")
    if bare:
        return qformer.QFormer(_qformer_from(config))
    vision = _vision_from(_part(config, "vision_config"), preprocessor)
    inner = _part(config, "qformer_config")
    asked = dataclasses.replace(
        _qformer_from(inner), queries=config.get("num_query_tokens", int, 32), image_width=vision.width
    )
    if CLASSES[architectures[0]] is qformer.Blip2Retrieval:
        if not asked.text:
            raise ValueError(f"{inner.where}: use_qformer_text_input is false, but retrieval reads texts")
        return qformer.Blip2Retrieval(
            qformer.RetrievalConfig(vision, asked, embed_dim=config.get("image_text_hidden_size", int, 256))
        )
    if asked.text:
        raise ValueError(f"{inner.where}: use_qformer_text_input is true, but no text goes through it in generation")
    return blip2.Blip2(blip2.blip2(vision, asked, _language_from(config), config.get("image_token_index", int)))


def _part(config: Fields, name: str) -> Fields:
    return config.part(name) if config.values.get(name) is not None else Fields({}, f"{config.where}: {name}")


def _language_from(config: Fields) -> llama.LlamaConfig:
    text = _part(config, "text_config")
    kind = text.get("model_type", str, "opt")
    if kind not in llama_weights.KINDS:
        raise ValueError(
            f"{text.where}: model_type is {kind!r}, supported are {', '.join(llama_weights.KINDS)}; the published "
            "BLIP-2 speak through OPT or FlanT5, which are not here; their eyes are: load the folder of a retrieval "
            "model, and put a LLaMA behind it with models.blip2.blip2"
        )
    return llama_weights.from_config(text).config


def _qformer_from(config: Fields) -> qformer.QFormerConfig:
    depth, vocab_size = config.get("num_hidden_layers", int, 12), config.get("vocab_size", int, 30_522)
    return qformer.QFormerConfig(
        image_width=config.get("encoder_hidden_size", int, 1408),
        vocab_size=vocab_size,
        length=config.get("max_position_embeddings", int, 512),
        width=config.get("hidden_size", int, 768),
        depth=depth,
        num_heads=config.get("num_attention_heads", int, 12),
        hidden=config.get("intermediate_size", int, 3072),
        cross_every=min(config.get("cross_attention_frequency", int, 2), depth),
        text=config.get("use_qformer_text_input", bool, False),
        start_id=vocab_size - 1,
        activation=config.one_of("hidden_act", ACTIVATIONS, "gelu"),
        epsilon=config.get("layer_norm_eps", float, 1e-12),
        dropout=config.get("hidden_dropout_prob", float, 0.1),
    )


def _vision_from(config: Fields, preprocessor: Fields) -> vit.ViTConfig:
    return vit.ViTConfig(
        image_size=config.side("image_size", 224),
        patch_size=config.side("patch_size", 14),
        width=config.get("hidden_size", int, 1408),
        depth=config.get("num_hidden_layers", int, 39),
        num_heads=config.get("num_attention_heads", int, 16),
        hidden=config.get("intermediate_size", int, 6144),
        activation=config.one_of("hidden_act", ACTIVATIONS, "gelu"),
        epsilon=config.get("layer_norm_eps", float, 1e-6),
        qkv_bias=config.get("qkv_bias", bool, True),
        image_mean=preprocessor.colour("image_mean", OPENAI_MEAN),
        image_std=preprocessor.colour("image_std", OPENAI_STD),
    )


def to_config(model: nn.Module) -> dict:
    kind = next(name for name, one in CLASSES.items() if one is type(model))
    c = model.config
    if isinstance(model, qformer.QFormer):
        return {"architectures": [kind], **_qformer_config(c)}
    vit.only(c.vision, READ, FORMAT)
    generates = isinstance(model, blip2.Blip2)
    asked = _asked(model) if generates else c.qformer
    out = {
        "architectures": [kind],
        "model_type": "blip-2",
        "num_query_tokens": asked.queries,
        "vision_config": _vision_config(c.vision),
        "qformer_config": _qformer_config(asked),
    }
    if generates:
        return out | {
            "image_token_index": c.image_token,
            "text_config": llama_weights.to_config(llama.Llama(c.language)),
            "tie_word_embeddings": c.language.tied,
        }
    return out | {"image_text_hidden_size": c.embed_dim}


def _qformer_config(c: qformer.QFormerConfig) -> dict:
    return {
        "model_type": "blip_2_qformer",
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.length,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.hidden,
        "hidden_act": _name(c.activation),
        "layer_norm_eps": c.epsilon,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout,
        "cross_attention_frequency": c.cross_every,
        "encoder_hidden_size": c.image_width,
        "use_qformer_text_input": c.text,
    }


def _vision_config(c: vit.ViTConfig) -> dict:
    return {
        "model_type": "blip_2_vision_model",
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "hidden_size": c.width,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.num_heads,
        "intermediate_size": c.hidden,
        "hidden_act": _name(c.activation),
        "layer_norm_eps": c.epsilon,
        "qkv_bias": c.qkv_bias,
    }


def _name(activation: Any) -> str:
    for name, function in ACTIVATIONS.items():
        if activation is function:
            return name
    raise ValueError(f"activation {activation} has no name here; supported are {', '.join(ACTIVATIONS)}")


def to_preprocessor(model: nn.Module) -> dict:
    if isinstance(model, qformer.QFormer):
        return {}  # it reads what another model has seen
    c = model.config.vision
    return {
        "image_processor_type": "BlipImageProcessor",
        "do_resize": True,
        "size": {"height": c.image_size, "width": c.image_size},
        "resample": 3,  # bicubic
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(c.image_mean),
        "image_std": list(c.image_std),
    }


def resize(model: nn.Module, variables: dict, image_size: int, *, antialias: bool) -> tuple[nn.Module, dict]:
    """The model for images of another size."""
    if isinstance(model, qformer.QFormer):
        raise ValueError("a bare Q-Former reads no images; leave image_size out")
    generates, params = isinstance(model, blip2.Blip2), variables["params"]
    old = params["vision"]["tower"] if generates else params["vision"]
    vision, tower = resized_tower(model.config.vision, old, image_size, antialias=antialias)
    model = type(model)(dataclasses.replace(model.config, vision=vision))
    tower = {**params["vision"], "tower": tower} if generates else tower
    return model, {**variables, "params": {**params, "vision": tower}}


def abstract(model: nn.Module) -> Mapping:
    """The variables' shapes."""
    shape, c = jax.ShapeDtypeStruct, model.config
    init, ids = lambda *args: jax.eval_shape(model.init, jax.random.key(0), *args), shape((1, 2), jnp.int32)
    if isinstance(model, qformer.QFormer):
        text = shape((1, 2, c.width), jnp.float32) if c.text else None
        return init(shape((1, 1, c.width), jnp.float32), shape((1, 1, c.image_width), jnp.float32), None, text)
    images = shape((1, c.vision.image_size, c.vision.image_size, 3), jnp.float32)
    return init(ids, images) if isinstance(model, blip2.Blip2) else init(images, ids)
