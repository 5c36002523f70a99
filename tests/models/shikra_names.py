"""The weights of Shikra's and NExT-Chat's goldens as our tree, name by name (shares no code with mmjax.weights)."""

import numpy as np
from clip_names import group, hf_tower, linear
from lm_names import llama


def parts(flat: dict) -> dict:
    """What both have: the tower under "tower", the language model under its own names."""
    return {"vision": hf_tower(flat, "tower"), "language": llama(flat)}


def group_of(flat: dict, prefix: str) -> dict:
    return {name.removeprefix(prefix): x for name, x in flat.items() if name.startswith(prefix)}


def shikra(flat: dict) -> dict:
    return {**parts(flat), "projector": linear(flat, "model.mm_projector")}


def nextchat(flat: dict) -> dict:
    names = {"projector": "model.mm_projector", "loc_encoder": "loc_encoder", "loc_decoder": "loc_decoder"}
    two = {our: {"up": linear(flat, f"{x}.0"), "down": linear(flat, f"{x}.2")} for our, x in names.items()}
    return {**parts(flat), **two}


def batch_of(golden: np.lib.npyio.NpzFile) -> dict:
    """Pictures by row: the authors hand them out in order, to the rows that have places for one."""
    ids = golden["input_ids"].astype(np.int32)
    return {
        "input_ids": ids,
        "attention_mask": golden["attention_mask"].astype(bool),
        "spoken": golden["labels"] != -100,
    }


def weights_of(golden: np.lib.npyio.NpzFile) -> dict:
    return group(golden, "weights")
