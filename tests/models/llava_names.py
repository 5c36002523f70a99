"""The weights of a file of transformers' LLaVA as our tree, name by name (shares no code with mmjax.weights)."""

from clip_names import hf_tower, linear
from lm_names import llama


def llava(flat: dict) -> dict:
    text = {name.removeprefix("language_model."): x for name, x in flat.items()}
    names = {"up": "linear_1", "down": "linear_2"}
    return {
        "vision": hf_tower(flat, "vision_tower"),
        "projector": {our: linear(flat, f"multi_modal_projector.{their}") for our, their in names.items()},
        "language": llama(text),
    }
