"""Makes nextchat_masks.npz with NExT-ChatV/NExT-Chat's own code: its losses of masks, and its SAM of a tiny size.

    loss/N/...     logits [N h w], scores [N], masks [N h w] -> loss and gradients, for N masks
    weights/NAME   of SAM (half precision, to take little room) and of seg_prompt_mlp
    states [2 W], boxes [2 4], images [2 3 H H], wanted [2 H H] -> logits [2 1 H H], scores [2 1], loss, and gradients
                   of states, boxes and some of what stage 3 trains: one mask for each of two pictures
    several/...    three masks of one picture
    picture, fitted: a picture of odd sizes in SAM's square

Needs torch and torchvision, and the path of a checkout (commit 1e6c20f) as the argument:

    python tests/goldens/make_nextchat_masks.py CHECKOUT
"""

import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

SAM = Path(sys.argv[1]) / "mllm/models/sam"
SIDE, PATCH, GRID, WIDTH, DIM, HIDDEN = 24, 6, 4, 16, 16, 12


def original() -> dict:
    for name in ("mllm", "mllm.models", "mllm.models.sam"):
        sys.modules[name] = types.ModuleType(name)
    names = {}
    for file in ("transforms", "modeling_sam", "sam_loss"):
        module = sys.modules[f"mllm.models.sam.{file}"] = types.ModuleType(file)
        exec(compile((SAM / f"{file}.py").read_text(), file, "exec"), vars(module))
        names |= vars(module)
    return names


def network(names: dict) -> tuple:
    encoder = names["ImageEncoderViT"](
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=2, num_heads=2, mlp_ratio=1.5, out_chans=DIM,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=3, global_attn_indexes=(1,),
    )  # fmt: skip
    prompts = names["PromptEncoder"](DIM, (GRID, GRID), (SIDE, SIDE), mask_in_chans=8)
    transformer = names["TwoWayTransformer"](depth=2, embedding_dim=DIM, num_heads=2, mlp_dim=20)
    decoder = names["MaskDecoder"](transformer_dim=DIM, transformer=transformer, iou_head_hidden_dim=12)
    whole = names["SamForLMSeg"].__new__(names["SamForLMSeg"])
    torch.nn.Module.__init__(whole)
    whole.model = names["Sam"](encoder, prompts, decoder).eval()
    mlp = torch.nn.Sequential(torch.nn.Linear(HIDDEN, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 4 * DIM))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (whole.model, mlp):
            for name, weight in [*part.named_parameters(), *part.named_buffers()]:
                if not name.startswith("pixel_"):
                    mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                    scale = 1.0 if "positional_e" in name else 0.25
                    weight.copy_((mean + scale * torch.randn(weight.shape, generator=generator)).half())
    return whole, mlp


def losses(names: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
    out = {}
    for count in (1, 2, 3):
        logits = torch.tensor(rng.normal(size=(count, 1, 7, 9)).astype(np.float32), requires_grad=True)
        scores = torch.tensor(rng.uniform(size=(count, 1)).astype(np.float32), requires_grad=True)
        masks = torch.tensor((rng.random((count, 1, 7, 9)) < 0.4).astype(np.float32))
        value = names["SamLoss"]()(logits, masks, scores, "cpu")
        value.backward()
        found = {"logits": logits, "scores": scores, "masks": masks, "loss": value}
        found |= {"logits_gradient": logits.grad, "scores_gradient": scores.grad}
        out |= {f"loss/{count}/{name}": x.detach().numpy() for name, x in found.items()}
    return out


def main() -> None:
    names, rng = original(), np.random.default_rng(0)
    whole, mlp = network(names)
    draw = lambda *shape: torch.tensor(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    arrays = losses(names, rng)
    for prefix, pictures, count in (("", 2, 2), ("several/", 1, 3)):
        images, states = draw(pictures, 3, SIDE, SIDE), draw(count, HIDDEN).requires_grad_()
        corners = rng.uniform(0, 1, (count, 2, 2))
        boxes = torch.tensor(np.concatenate([corners.min(1), corners.max(1)], -1).astype(np.float32))
        boxes.requires_grad_()
        wanted = torch.tensor((rng.random((count, 1, SIDE, SIDE)) < 0.4).astype(np.float32))
        prompts = mlp(states).view(count, -1, DIM)
        logits, scores = whole(images, prompts, boxes * SIDE)
        value = names["SamLoss"]()(logits, wanted, scores, "cpu")
        for part in (whole, mlp):
            part.zero_grad()
        value.backward()
        found = {"images": images, "states": states, "boxes": boxes, "wanted": wanted[:, 0], "logits": logits}
        found |= {"scores": scores, "loss": value, "states_gradient": states.grad, "boxes_gradient": boxes.grad}
        arrays |= {f"{prefix}{name}": x.detach().numpy() for name, x in found.items()}
        if not prefix:
            trained = [*mlp.named_parameters(prefix="seg_prompt_mlp")]
            trained += [one for one in whole.model.named_parameters() if one[0].startswith("mask_decoder.iou_pred")]
            arrays |= {f"gradients/{name}": x.grad.numpy() for name, x in trained}
    tensors = whole.model.state_dict() | mlp.state_dict(prefix="seg_prompt_mlp.")
    arrays |= {f"weights/{name}": x.half().numpy() for name, x in tensors.items()}
    y, x = np.mgrid[:13, :31]
    picture = np.uint8(127 + 90 * np.stack([np.sin(x / 5 + y / 9), np.sin(x / 3), np.cos(y / 4)], -1))
    fitted, _, _ = names["ResizeAndPad"](SIDE)(Image.fromarray(picture), None)
    arrays |= {"picture": picture, "fitted": fitted.permute(1, 2, 0).numpy()}
    np.savez_compressed(Path(__file__).with_name("nextchat_masks.npz"), **arrays)


if __name__ == "__main__":
    main()
