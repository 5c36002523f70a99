"""LLaVA as transformers' LlavaForConditionalGeneration keeps it, and the authors' own files."""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models import llava
from mmjax.models.clip import OPENAI_MEAN, OPENAI_STD
from mmjax.weights import clip, llama
from mmjax.weights.engine import Rule, linear
from mmjax.weights.fields import Fields

MODEL = llava.Llava
FORMAT = "transformers' LlavaForConditionalGeneration"
LANGUAGE = "language_model."
PATCHES = "default"  # transformers' vision_feature_select_strategy: without the class token; "full" with it
# Other prefixes -> those that transformers 5 writes: of its runtime, of files of transformers 4, of the authors' files.
OTHERS = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.vision_tower.": "vision_tower.",
    "vision_tower.vision_model.": "vision_tower.",
    "model.vision_tower.vision_tower.vision_model.": "vision_tower.",
    "model.mm_projector.0.": "multi_modal_projector.linear_1.",
    "model.mm_projector.2.": "multi_modal_projector.linear_2.",
    "model.embed_tokens.": "language_model.model.embed_tokens.",
    "model.layers.": "language_model.model.layers.",
    "model.norm.": "language_model.model.norm.",
}


def RULES(model: llava.Llava) -> list[Rule]:
    _check(model)
    vision = [rule for rule in clip.RULES if rule.ours.startswith("vision/")]
    language = llama.RULES(llama.MODEL(model.config.language))
    return [
        *(replace(rule, theirs=rule.theirs.replace("vision_model.", "vision_tower.")) for rule in vision),
        *linear("projector/up", "multi_modal_projector.linear_1"),
        *linear("projector/down", "multi_modal_projector.linear_2"),
        *(replace(rule, ours=f"language/{rule.ours}", theirs=f"{LANGUAGE}{rule.theirs}") for rule in language),
    ]


def IGNORED(model: llava.Llava) -> tuple[str, ...]:
    names = (*clip.IGNORED, *llama.IGNORED(llama.MODEL(model.config.language)))
    return tuple(name.replace("^lm_head", f"^{LANGUAGE}lm_head") for name in names)


def _check(model: llava.Llava) -> None:
    c = model.config
    if c.see is not llava.ClipPatches or c.projector is not llava.mlp:
        raise ValueError(
            f"{FORMAT} holds CLIP's patches through a projector of two layers (see=ClipPatches, projector=mlp), got "
            f"see={c.see}, projector={c.projector}"
        )


def renamed(model: llava.Llava, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Current names. The authors' files leave out the tower, which stayed OpenAI's: it is then listed as missing."""
    return {_current(name): x for name, x in tensors.items()}


def _current(name: str) -> str:
    old = max((old for old in OTHERS if name.startswith(old)), key=len, default=None)
    return name if old is None else OTHERS[old] + name.removeprefix(old)


def from_config(config: Fields, preprocessor: Fields) -> llava.Llava:
    """config.json and preprocessor_config.json; an absent field has the value that transformers 5 gives it."""
    text, vision = config.part("text_config"), config.part("vision_config")
    text.one_of("model_type", llama.KINDS, "llama")
    vision.expect("model_type", "clip_vision_model")
    config.expect("projector_hidden_act", "gelu")
    config.expect("multimodal_projector_bias", True)
    language = llama.from_config(text).config
    sizes = clip.tower_from(vision)
    strategies = {PATCHES: False, "full": True}
    return llava.Llava(
        llava.LlavaConfig(
            sizes,
            replace(language, tied=config.get("tie_word_embeddings", bool, language.tied)),
            image_token=config.get("image_token_index", int, 32_000),
            layers=_layers(config, sizes.depth),
            class_token=config.one_of("vision_feature_select_strategy", strategies, PATCHES),
            image_mean=preprocessor.colour("image_mean", OPENAI_MEAN),
            image_std=preprocessor.colour("image_std", OPENAI_STD),
        )
    )


def _layers(config: Fields, depth: int) -> tuple[int, ...]:
    """They count what comes before the first block as 0, and from the end as we do; ours are kept from the end."""
    theirs = config.values.get("vision_feature_layer", -2)
    layers = theirs if isinstance(theirs, list) else [theirs]
    if not layers or not all(isinstance(n, int) and (1 <= n <= depth or -depth <= n < 0) for n in layers):
        raise ValueError(
            f"{config.where}: vision_feature_layer is {theirs!r}, expected one or several of the tower's {depth} "
            f"blocks, 1 to {depth} or -{depth} to -1"
        )
    return tuple(n if n < 0 else n - depth - 1 for n in layers)


def to_config(model: llava.Llava) -> dict:
    _check(model)
    c = model.config
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": c.image_token,
        "image_seq_length": c.tokens_per_image,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": c.layers[0] if len(c.layers) == 1 else list(c.layers),
        "vision_feature_select_strategy": "full" if c.class_token else PATCHES,
        "tie_word_embeddings": c.language.tied,
        "text_config": llama.to_config(llama.MODEL(c.language)),
        "vision_config": clip.vision_config(c.vision),
    }


def to_preprocessor(model: llava.Llava) -> dict:
    c = model.config
    return {**clip.preprocessor(c.vision.image_size, c.image_mean, c.image_std), "do_pad": True} | {
        "image_processor_type": "LlavaImageProcessor"
    }


def resize(model: llava.Llava, variables: dict, image_size: int, *, antialias: bool) -> tuple[llava.Llava, dict]:
    """The model for pictures of another size, which become another number of tokens."""
    params = variables["params"]
    vision, tower = clip.resized_tower(model.config.vision, params["vision"], image_size, antialias=antialias)
    model = llava.Llava(replace(model.config, vision=vision))
    return model, {**variables, "params": {**params, "vision": tower}}


def abstract(model: llava.Llava) -> dict:
    """The variables' shapes."""
    side = model.config.vision.image_size
    input_ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(
        model.init, jax.random.key(0), input_ids, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    )
