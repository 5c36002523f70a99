"""NExT-Chat as its authors keep it: LLaMA's names, `model.mm_projector`, the coders of places and, with masks,
`seg_prompt_mlp`. CLIP's tower and SAM (`sam.model.`, weights/sam.py), which have files of their own, are handed in."""

from collections.abc import Mapping

import numpy as np

from mmjax.models import llama, llava, nextchat
from mmjax.weights import engine, shikra
from mmjax.weights import llama as llama_weights
from mmjax.weights import llava as llava_weights
from mmjax.weights.engine import Rule, linear

FORMAT = "NExT-ChatV/NExT-Chat's NextChatForCausalLM"
APART = ("vision", "sam")
IGNORED = (r"^sam\.", r"^model\.vision_tower\.")
OWN = {
    "projector": "model.mm_projector",
    "loc_encoder": "loc_encoder",
    "loc_decoder": "loc_decoder",
    "seg_prompt": "seg_prompt_mlp",
}


def rules(model: nextchat.NextChat) -> list[Rule]:
    """Of all paths but vision/ and sam/."""
    if model.config.projector is not llava.mlp:
        raise ValueError(f"{FORMAT} has two layers, projector=llava.mlp, got {model.config.projector.__name__}")
    parts = OWN if isinstance(model, nextchat.NextChatSeg) else {our: OWN[our] for our in OWN if our != "seg_prompt"}
    two = [
        rule
        for our, their in parts.items()
        for rule in (*linear(f"{our}/up", f"{their}.0"), *linear(f"{our}/down", f"{their}.2"))
    ]
    return [*two, *shikra.language(model.config)]


def load(
    model: nextchat.NextChat, tensors: Mapping[str, np.ndarray], apart: Mapping[str, Mapping], *,
    source: str = "tensors",
) -> dict:  # fmt: skip
    """The variables of `model`. apart: parameters of the other networks, {"vision": CLIP's tower, "sam": SAM's}."""
    target = {part: tree for part, tree in llava_weights.abstract(model)["params"].items() if part not in APART}
    ignored = (*llama_weights.IGNORED(llama.Llama(model.config.language)), *IGNORED)
    found = engine.load(rules(model), tensors, target, format=FORMAT, source=source, ignored=ignored)
    return {"params": {**found, **apart}}


def save(model: nextchat.NextChat, variables: Mapping) -> dict[str, np.ndarray]:
    """Their tensors, by name, without those of the other networks."""
    params = {part: tree for part, tree in variables["params"].items() if part not in APART}
    return engine.save(rules(model), params, format=FORMAT)
