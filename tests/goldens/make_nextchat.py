"""Makes nextchat.npz with NExT-ChatV/NExT-Chat's own code, on transformers' Llama and CLIP of tiny sizes.

    weights/NAME, inputs, logits, loss and gradients/NAME of NextChatForCausalLM: rows with a picture and two places in
    the answer, with a place in the question only, without a picture and one place in each, and, last, the row that
    the authors put into every batch with a weight of 1e-10
    term/NAME and term_gradient/NAME/WEIGHT: the four losses of places, and what each sends into encoder and decoder
    pieces/...: box_loss of boxes, some of them reversed; gradient of what is predicted
    answer/...: a prompt with the answer that generate_rec gives it, and the box that is read at <at>

Needs torch, torchvision and transformers, and the path of a checkout (commit 1e6c20f) as the argument:

    python tests/goldens/make_nextchat.py CHECKOUT
"""

import sys
import types
from pathlib import Path

import numpy as np
import torch
import transformers

CHECKOUT = Path(sys.argv[1])
V, PATCH, START, END, AT, BOX = 45, 40, 41, 42, 43, 44
TERMS = ("l1", "giou", "cycle_states", "cycle_boxes")
LOCATIONS = [f"loc_{kind}coder.{i}.{part}" for kind in ("en", "de") for i in (0, 2) for part in ("weight", "bias")]
VISION = {
    "image_size": 28, "patch_size": 14, "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3,
    "num_attention_heads": 3,
}  # fmt: skip
TEXT = {
    "vocab_size": V, "max_position_embeddings": 64, "hidden_size": 16, "intermediate_size": 22, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip


def original() -> types.ModuleType:
    # Text without a picture goes through the projector as zeros of the one size that the authors have.
    source = (CHECKOUT / "mllm/models/nextchat/nextchat_base.py").read_text().replace("zeros(256, 1024", "zeros(4, 12")
    # Their package wants more of its own files than are needed; the one that is, is loaded alone.
    ops = types.ModuleType("mllm.utils.box_ops")
    exec((CHECKOUT / "mllm/utils/box_ops.py").read_text(), vars(ops))
    for name in ("mllm", "mllm.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["mllm.utils.box_ops"] = ops
    module = types.ModuleType("original")
    exec(compile(source, "nextchat_base.py", "exec"), vars(module))
    return module


def network(module: types.ModuleType, seed: int) -> torch.nn.Module:
    config = module.NextChatConfig(**TEXT, attn_implementation="eager")
    config.use_mm_proj, config.mm_hidden_size, config.mm_depth = True, VISION["hidden_size"], 2
    config.mm_vision_select_layer = -2
    model = module.NextChatForCausalLM(config)
    tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION, attn_implementation="eager"))
    c = tower.config
    c.im_patch_token, c.im_start_token, c.im_end_token, c.at_token, c.box_token = PATCH, START, END, AT, BOX
    c.use_im_start_end = True
    # In a list, as the authors keep it in parts: as a part of the model, transformers 5 records its layers twice.
    model.model.vision_tower = [tower]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in (*model.named_parameters(), *tower.named_parameters()):
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            weight.copy_(mean + 0.25 * torch.randn(weight.shape, generator=generator))
        model.loc_decoder[2].bias.copy_(torch.tensor([0.2, 0.3, 0.6, 0.7]))
    return model.train()


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    picture, place = [START, *[PATCH] * 4, END], [AT, BOX]
    rows = [  # what is said, and from where on the assistant says it
        ([1, *picture, 5, 6, *place, 7, *place, 8, 2], 8), ([1, 9, *picture, *place, 11, 12, 2], 11),
        ([1, 20, *place, 21, *place, 22, 2], 4), ([1, *picture, 13, *place, 14, 2], 8),
    ]  # fmt: skip
    length = max(len(row) for row, _ in rows)
    ids = np.array([row + [0] * (length - len(row)) for row, _ in rows])
    spoken = np.array([[start <= i < len(row) for i in range(length)] for row, start in rows])
    corners = rng.uniform(0, 1, ((ids == BOX).sum(), 2, 2))
    boxes = np.concatenate([corners.min(1), corners.max(1)], -1).astype(np.float32)
    targets = boxes[spoken[ids == AT]]
    return {
        "input_ids": ids, "attention_mask": ids != 0, "labels": np.where(spoken, ids, -100), "boxes": boxes,
        "targets": targets, "images": rng.normal(size=(3, 28, 28, 3)).astype(np.float32),
    }  # fmt: skip


def pixels(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(images.transpose(0, 3, 1, 2))


def run(model: torch.nn.Module, given: dict) -> tuple:
    """Its forward pass, the four terms as they are made, and the boxes that it decodes of <at>."""
    terms, boxes, plain, decoder = [], [], model.masked_loss, model.loc_decoder
    model.masked_loss = lambda *args: (terms.append(plain(*args)), terms[-1])[1]
    hook = decoder.register_forward_hook(lambda _, __, out: boxes.append(out.detach().numpy()))
    tensors = {name: torch.tensor(x) for name, x in given.items() if name not in ("images", "boxes", "targets")}
    tensors["attention_mask"] = tensors["attention_mask"].int()
    out = model(
        **tensors, images=pixels(given["images"]), loc_inputs=torch.tensor(given["boxes"]),
        loc_targets=torch.tensor(given["targets"]), output_attentions=False, output_hidden_states=True,
        return_dict=True, use_cache=False,
    )  # fmt: skip
    hook.remove()
    del model.masked_loss
    return out, terms, boxes[0]


def pieces(module: types.ModuleType) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    corners = rng.uniform(0, 1, (7, 2, 2))
    wanted = np.concatenate([corners.min(1), corners.max(1)], -1).astype(np.float32)
    found = (wanted + rng.normal(size=(7, 4)) * 0.1).astype(np.float32)
    found[1, [0, 2]], found[3, 3] = found[1, [2, 0]], found[3, 1] - 0.1  # reversed
    found[6] = wanted[6] + 0.05  # the last one, which hardly counts
    predicted = torch.tensor(found, requires_grad=True)
    owner = types.SimpleNamespace(masked_loss=lambda *a: module.NextChatForCausalLM.masked_loss(None, *a))
    value = module.NextChatForCausalLM.box_loss(owner, predicted, torch.tensor(wanted))
    value.backward()
    return {
        "pieces/wanted": wanted, "pieces/found": found, "pieces/loss": value.detach().numpy(),
        "pieces/gradient": predicted.grad.numpy(),
    }  # fmt: skip


def main() -> None:
    module, given = original(), batch()
    for seed in range(500):  # of those decoded some are reversed, and the last, which hardly counts, is not
        model = network(module, seed)
        _, _, found = run(model, given)
        valid = (found[:, 2:] >= found[:, :2]).all(1)
        if valid[-1] and 0 < valid[:-1].sum() < len(valid) - 1:
            break
    print(f"seed {seed}: {valid}")
    out, terms, found = run(model, given)
    assert len(terms) == 4
    weights = dict(model.named_parameters())
    parts = [weights[name] for name in LOCATIONS]
    arrays = {f"term/{name}": term.detach().numpy() for name, term in zip(TERMS, terms, strict=True)}
    for name, term in zip(TERMS, terms, strict=True):
        gradients = torch.autograd.grad(term, parts, retain_graph=True, allow_unused=True)
        arrays |= {
            f"term_gradient/{name}/{n}": g.numpy() for n, g in zip(LOCATIONS, gradients, strict=True) if g is not None
        }
    out.loss.backward()
    arrays |= {f"gradients/{n}": x.grad.numpy() for n, x in weights.items() if x.grad is not None}
    weights |= {f"tower.{name}": x for name, x in model.model.vision_tower[0].named_parameters()}
    arrays |= {f"weights/{name}": x.detach().numpy() for name, x in weights.items()}
    arrays |= {"logits": out.logits.detach().numpy(), "loss": out.loss.detach().numpy(), "found": found}
    with torch.no_grad():
        prompt = given["input_ids"][[0], :8]
        # Their constants are of the published vocabulary.
        ids = torch.tensor(np.concatenate([prompt, [[6, AT, BOX, 8, 2]]], 1))
        states = model.model(
            input_ids=ids, attention_mask=torch.ones_like(ids), images=pixels(given["images"][:1]),
            output_hidden_states=True, return_dict=True, use_cache=False,
        ).hidden_states[-1]  # fmt: skip
        arrays |= {"answer/ids": ids.numpy(), "answer/box": model.loc_decoder(states[ids == AT]).numpy()}
    arrays |= given | pieces(module)
    arrays["labels"] = np.where(arrays["labels"] == BOX, -100, arrays["labels"])
    np.savez_compressed(Path(__file__).with_name("nextchat.npz"), **arrays)


if __name__ == "__main__":
    main()
