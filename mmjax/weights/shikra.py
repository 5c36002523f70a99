"""Shikra as its authors keep it: LLaMA's names and `model.mm_projector`; CLIP's tower, which stayed OpenAI's, apart.

What they publish is the difference to LLaMA (`applied`). Files are safetensors or torch's (weights/files.py reads a
folder of either), and hold no more than tensors: the model must be said.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mmjax.models import llama, llava
from mmjax.weights import engine
from mmjax.weights import llama as llama_weights
from mmjax.weights import llava as llava_weights
from mmjax.weights.engine import Rule, linear

FORMAT = "shikras/shikra's ShikraLlamaForCausalLM"
TABLES = ("model.embed_tokens.weight", "lm_head.weight")  # which have more rows than LLaMA's
OWN = ("model.mm_projector.weight", "model.mm_projector.bias")  # which LLaMA has not


def rules(config: llava.LlavaConfig) -> list[Rule]:
    """Of the paths language/ and projector/."""
    if config.projector is not llava.linear:
        raise ValueError(f"{FORMAT} has one linear layer, projector=llava.linear, got {config.projector.__name__}")
    return [*linear("projector", "model.mm_projector"), *language(config)]


def language(config: llava.LlavaConfig) -> list[Rule]:
    rules = llama_weights.RULES(llama.Llama(config.language))
    return [replace(rule, ours=f"language/{rule.ours}") for rule in rules]


def load(model: llava.Llava, tensors: Mapping[str, np.ndarray], vision: Mapping, *, source: str = "tensors") -> dict:
    """The variables of `model`. vision: parameters of the tower, `vision` of a loaded CLIP's."""
    target = {part: tree for part, tree in llava_weights.abstract(model)["params"].items() if part != "vision"}
    ignored = llama_weights.IGNORED(llama.Llama(model.config.language))
    found = engine.load(
        rules(model.config), tensors, target, format=FORMAT, source=source, ignored=ignored
    )  # fmt: skip
    return {"params": {**found, "vision": vision}}


def save(model: llava.Llava, variables: Mapping) -> dict[str, np.ndarray]:
    """Their tensors, by name, without the tower's."""
    params = {part: tree for part, tree in variables["params"].items() if part != "vision"}
    return engine.save(rules(model.config), params, format=FORMAT)


def applied(base: Mapping[str, np.ndarray], delta: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """LLaMA and the published difference -> Shikra's tensors, all by name, added in the type that they come in: the
    authors' is float16. Rows of new ids and the projector are in the difference alone."""
    out = {}
    for name, x in delta.items():
        if name in OWN:
            out[name] = x
            continue
        if name not in base:
            raise ValueError(f"the difference holds {name}, which is neither LLaMA's nor the projector")
        old, table = base[name], name in TABLES
        if old.shape != x.shape and not (table and len(old) <= len(x) and old.shape[1:] == x.shape[1:]):
            raise ValueError(
                f"{name} is {list(old.shape)} in LLaMA and {list(x.shape)} in the difference; is this the LLaMA, "
                "7B or 13B, that it was made from?"
            )
        out[name] = np.concatenate([old + x[: len(old)], x[len(old) :]])
    return out
