"""Makes shikra.npz and shikra.json with shikras/shikra's own code, on transformers' Llama and CLIP of tiny sizes.

    shikra.npz   weights/NAME, inputs, and what ShikraLlamaForCausalLM computes: logits, loss, gradients/NAME; rows with
                 a picture, with words before it, and without one; padded on the right
    delta_...    a base, a delta and what apply_delta makes of them
    shikra.json  the vicuna_v1.1 template of conversations

Needs torch and transformers, and the path of a checkout (commit ff79a4c) as the argument:

    python tests/goldens/make_shikra.py CHECKOUT
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
import transformers

CHECKOUT = Path(sys.argv[1])
HERE = Path(__file__).parent
V, PATCH, START, END = 40, 37, 38, 39
VISION = {
    "image_size": 28, "patch_size": 14, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 3,
}  # fmt: skip
TEXT = {
    "vocab_size": V, "max_position_embeddings": 64, "hidden_size": 16, "intermediate_size": 22, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip


def model() -> torch.nn.Module:
    # Text without a picture goes through the projector as zeros of the one size that the authors have.
    source = (CHECKOUT / "mllm/models/shikra/shikra.py").read_text().replace("zeros(256, 1024", "zeros(4, 12")
    module = types.ModuleType("original")
    exec(compile(source, "shikra.py", "exec"), vars(module))
    config = module.ShikraConfig(**TEXT, attn_implementation="eager")
    config.use_mm_proj, config.mm_hidden_size, config.mm_vision_select_layer = True, VISION["hidden_size"], -2
    made = module.ShikraLlamaForCausalLM(config)
    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION, attn_implementation="eager"))
    tower.config.im_patch_token, tower.config.im_start_token, tower.config.im_end_token = PATCH, START, END
    tower.config.use_im_start_end = True
    made.model.vision_tower = [tower]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (made, tower):
            for name, weight in part.named_parameters():
                mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                weight.copy_(mean + 0.25 * torch.randn(weight.shape, generator=generator))
    return made.train()  # what the authors do with a picture, they do in training


def batch() -> dict[str, np.ndarray]:
    picture = [START, *[PATCH] * 4, END]
    rows = [[1, *picture, 5, 6, 7, 8, 2], [1, 9, 10, *picture, 11, 12, 13, 14, 2], [1, 20, 21, 22, 2]]
    length = max(len(row) for row in rows)
    ids = np.array([row + [0] * (length - len(row)) for row in rows])
    mask = ids != 0
    learned = mask & (np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] <= 3)  # the last three
    images = np.random.default_rng(1).normal(size=(2, 28, 28, 3)).astype(np.float32)
    return {"input_ids": ids, "attention_mask": mask, "labels": np.where(learned, ids, -100), "images": images}


def delta() -> dict[str, np.ndarray]:
    """The authors' rule on stand-ins for the two models that it reads."""
    rng = np.random.default_rng(2)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float16)  # noqa: E731
    base = {"model.embed_tokens.weight": draw(5, 3), "lm_head.weight": draw(5, 3), "model.norm.weight": draw(3)}
    new = {"model.embed_tokens.weight": draw(7, 3), "lm_head.weight": draw(7, 3), "model.norm.weight": draw(3)}
    new |= {"model.mm_projector.weight": draw(3, 2), "model.mm_projector.bias": draw(3)}
    tensors = {kind: {name: torch.tensor(x) for name, x in one.items()} for kind, one in (("b", base), ("d", new))}

    class Stub:
        def __init__(self, kind):
            self.kind = kind

        def state_dict(self):
            return tensors[self.kind]

        def save_pretrained(self, path):
            pass

    loader = lambda kind: types.SimpleNamespace(from_pretrained=lambda *a, **k: Stub(kind))  # noqa: E731
    names = {"AutoTokenizer": loader("t"), "AutoModelForCausalLM": loader("b"), "ShikraLlamaForCausalLM": loader("d")}
    source = (CHECKOUT / "mllm/models/shikra/apply_delta.py").read_text()
    code = {"torch": torch, "tqdm": lambda items, desc: items, "__name__": "original", **names}
    body = source[source.index("def apply_delta") : source.index("if __name__")]
    exec(compile(body, "apply_delta.py", "exec"), code)
    out = {f"delta_base/{name}": x for name, x in base.items()} | {f"delta_delta/{name}": x for name, x in new.items()}
    code["apply_delta"]("base", "target", "delta")
    return out | {f"delta_target/{name}": x.numpy() for name, x in tensors["d"].items()}


def templates() -> list:
    spec = importlib.util.spec_from_file_location("conversation", CHECKOUT / "mllm/conversation/base_conversation.py")
    sys.modules["conversation"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases = []
    for said in (["Where?"], ["Where?", "Answer: [0.100,0.200,0.300,0.400] ."], ["a", "b", "c"], ["a", "b", "c", "d"]):
        talk = module.get_conv_template("vicuna_v1.1")
        for i, text in enumerate([*said, None] if len(said) % 2 else said):
            talk.append_message(talk.roles[i % 2], text)
        cases.append({"said": said, "text": talk.get_prompt()})
    return cases


def main() -> None:
    network, given = model(), batch()
    pixels = torch.tensor(given["images"].transpose(0, 3, 1, 2))
    out = network(
        input_ids=torch.tensor(given["input_ids"]), attention_mask=torch.tensor(given["attention_mask"].astype(int)),
        labels=torch.tensor(given["labels"]), images=pixels, output_attentions=False, output_hidden_states=False,
        return_dict=True,
    )  # fmt: skip
    out.loss.backward()
    tower = network.model.vision_tower[0]
    weights = {f"tower.{name}": x for name, x in tower.named_parameters()} | dict(network.named_parameters())
    gradients = {f"gradients/{n}": x.grad.numpy() for n, x in network.named_parameters()}
    arrays = {f"weights/{name}": x.detach().numpy() for name, x in weights.items()} | gradients | given | delta()
    np.savez_compressed(
        HERE / "shikra.npz", **arrays, logits=out.logits.detach().numpy(), loss=out.loss.detach().numpy()
    )
    (HERE / "shikra.json").write_text(json.dumps(templates()) + "\n")


if __name__ == "__main__":
    main()
