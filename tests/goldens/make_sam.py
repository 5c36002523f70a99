"""Makes sam.npz: a tiny SAM of facebookresearch/segment-anything with random weights everywhere (of half precision, to
take little room); what it computes of each kind of prompt, gradients, pictures in and masks out, and what its automatic
mask generator finds.

And hf_sam/: transformers' SamModel as save_pretrained writes it, and what it computes of two images and three prompts.
Needs torch, torchvision, transformers and segment-anything; run as python tests/goldens/make_sam.py
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from segment_anything import SamAutomaticMaskGenerator
from segment_anything import modeling as sam
from segment_anything.modeling.image_encoder import get_rel_pos
from segment_anything.utils.transforms import ResizeLongestSide

HERE = Path(__file__).parent
SIDE, PATCH, GRID, WIDTH, DIM = 30, 6, 5, 12, 16  # 5 patches do not divide into windows of 3
# Masks of random weights reach all over the picture: suppression leaves few of them, and with a threshold of 1 all.
AUTOMATIC = {"points_per_side": 4, "points_per_batch": 5, "stability_score_offset": 0.2, "box_nms_thresh": 1.0}


def between(values: list[float]) -> float:
    """The middle of the widest gap that leaves at least a quarter on either side."""
    ordered = np.sort(values)[len(values) // 4 : -len(values) // 4]
    widest = np.argmax(np.diff(ordered))
    return float(ordered[widest : widest + 2].mean())


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if name.startswith("pixel_"):
                continue
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            loud = "hypernetworks" in name or "upscal" in name  # masks that are clear somewhere
            scale = 1.0 if "positional_e" in name else 0.6 if loud else 0.25
            weight.copy_((mean + scale * torch.randn(weight.shape, generator=generator)).half())


def official() -> sam.Sam:
    encoder = sam.ImageEncoderViT(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=3, num_heads=3, mlp_ratio=1.5, out_chans=DIM,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=3, global_attn_indexes=(2,),
    )  # fmt: skip
    prompts = sam.PromptEncoder(DIM, (GRID, GRID), (SIDE, SIDE), mask_in_chans=8)
    transformer = sam.TwoWayTransformer(depth=2, embedding_dim=DIM, num_heads=2, mlp_dim=20)
    decoder = sam.MaskDecoder(transformer_dim=DIM, transformer=transformer, iou_head_hidden_dim=12)
    model = sam.Sam(encoder, prompts, decoder).eval()
    randomise(model, 0)
    return model


def prompts(rng: np.random.Generator) -> dict[str, torch.Tensor]:
    points = rng.uniform(0, SIDE, (2, 3, 2))
    corners = np.sort(rng.uniform(0, SIDE, (2, 2, 2)), 1)
    masks = 3 * rng.normal(size=(2, 1, 4 * GRID, 4 * GRID))
    found = {"points": points, "boxes": corners.reshape(2, 4), "masks": masks}
    return {name: torch.tensor(x.astype(np.float32)) for name, x in found.items()} | {
        "labels": torch.tensor([[1, 0, -1], [0, 1, 1]])
    }


def decode(model: sam.Sam, image: torch.Tensor, kinds: str, multimask: bool, asked: dict) -> tuple:
    """image [1 C S S] of two prompts -> masks [2 K 4S 4S], scores [2 K]."""
    points = (asked["points"], asked["labels"]) if "p" in kinds else None
    sparse, dense = model.prompt_encoder(
        points, asked["boxes"] if "b" in kinds else None, asked["masks"] if "m" in kinds else None
    )
    return model.mask_decoder(image, model.prompt_encoder.get_dense_pe(), sparse, dense, multimask)


def of_official() -> dict[str, np.ndarray]:
    model, rng = official(), np.random.default_rng(0)
    asked, images = prompts(rng), torch.tensor(rng.normal(size=(2, 3, SIDE, SIDE)).astype(np.float32))
    golden = {f"weights/{name}": x.detach().half().numpy() for name, x in model.state_dict().items()}
    golden |= {f"inputs/{name}": x.numpy() for name, x in asked.items()} | {"inputs/images": images.numpy()}
    embeds = model.image_encoder(images)
    golden["embeds"] = embeds.detach().numpy()
    for kinds, multimask in (("p", False), ("pbm", True), ("", True)):
        masks, scores = decode(model, embeds[:1], kinds, multimask, asked)
        name = f"decoded/{kinds or 'none'}/{3 if multimask else 1}"
        golden |= {f"{name}/masks": masks.detach().numpy(), f"{name}/scores": scores.detach().numpy()}

    masks, scores = decode(model, embeds[1:], "pbm", True, asked)
    factors = [torch.tensor(rng.normal(size=x.shape).astype(np.float32)) for x in (masks, scores)]
    golden |= {f"factors/{name}": x.numpy() for name, x in zip(("masks", "scores"), factors, strict=True)}
    total = (masks * factors[0]).mean() + (scores * factors[1]).mean()
    total.backward()
    golden["total"] = total.detach().numpy()
    golden |= {
        f"gradients/{name}": (torch.zeros_like(x) if x.grad is None else x.grad).numpy()
        for name, x in model.named_parameters()
    }
    table = torch.tensor(rng.normal(size=(9, 8)).astype(np.float32))
    return (
        golden
        | {"table": table.numpy(), "apart": get_rel_pos(7, 7, table).numpy()}
        | of_a_picture(model, np.random.default_rng(0))
    )


def of_a_picture(model: sam.Sam, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """23 x 41 pixels, smooth but not flat."""
    y, x = np.mgrid[:23, :41]
    waves = [np.sin(x / a + y / b) for a, b in ((5, 9), (3, -7), (11, 4))]
    picture = np.uint8(127 + 90 * np.stack(waves, -1) + rng.uniform(-30, 30, (23, 41, 3)))
    fit = ResizeLongestSide(SIDE)
    small = torch.tensor(fit.apply_image(picture)).permute(2, 0, 1)[None].float()
    logits = torch.tensor(rng.normal(size=(2, 4 * GRID, 4 * GRID)).astype(np.float32))
    golden = {
        "picture": picture,
        "fitted": model.preprocess(small)[0].permute(1, 2, 0).numpy(),
        "coordinates": fit.apply_coords(np.array([[0.0, 0.0], [40.0, 22.0], [7.5, 3.0]]), (23, 41)),
        "logits": logits.numpy(),
        "pictured": model.postprocess_masks(logits[None], tuple(small.shape[-2:]), (23, 41))[0].numpy(),
    }

    def generate(**fields: float) -> list[dict]:
        return SamAutomaticMaskGenerator(model, **AUTOMATIC | fields).generate(picture)

    found = generate(pred_iou_thresh=-9.0, stability_score_thresh=1e-9)
    iou = between([one["predicted_iou"] for one in found])
    stability = between([one["stability_score"] for one in found if one["predicted_iou"] > iou])
    thresholds = {"pred_iou_thresh": iou, "stability_score_thresh": stability}
    found = generate(**thresholds)
    assert 5 < len(found) < 25, len(found)
    fewer = np.stack([one["segmentation"] for one in generate(**thresholds, box_nms_thresh=0.9)])
    assert 1 < len(fewer) < len(found), len(fewer)
    golden |= {"automatic/thresholds": np.array([iou, stability]), "automatic/fewer": fewer}
    golden["automatic/segmentation"] = np.stack([one["segmentation"] for one in found])
    for name in ("predicted_iou", "stability_score", "point_coords", "bbox"):
        golden[f"automatic/{name}"] = np.array([one[name] for one in found])
    return golden


def hf_sam() -> None:
    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            hidden_size=WIDTH, output_channels=DIM, num_hidden_layers=2, num_attention_heads=3, image_size=SIDE,
            patch_size=PATCH, window_size=2, global_attn_indexes=[0], num_pos_feats=DIM // 2, mlp_dim=20,
        ),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(
            hidden_size=DIM, image_size=SIDE, patch_size=PATCH, mask_input_channels=8
        ),
        mask_decoder_config=transformers.SamMaskDecoderConfig(
            hidden_size=DIM, mlp_dim=28, num_attention_heads=2, iou_head_hidden_dim=12
        ),
    )  # fmt: skip
    model = transformers.SamModel._from_config(config, attn_implementation="eager").eval()
    randomise(model, 1)
    model.save_pretrained(HERE / "hf_sam")
    rng = np.random.default_rng(1)
    images = rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
    points, boxes = rng.uniform(0, SIDE, (2, 3, 2, 2)), np.sort(rng.uniform(0, SIDE, (2, 3, 2, 2)), 2).reshape(2, 3, 4)
    asked = {"input_points": points.astype(np.float32), "input_boxes": boxes.astype(np.float32)}
    asked["input_labels"] = np.array([[[1, 0], [-1, 1], [-10, 0]], [[0, 1], [1, 1], [1, -10]]])
    with torch.no_grad():
        out = model(
            torch.tensor(images).permute(0, 3, 1, 2), **{name: torch.tensor(x) for name, x in asked.items()}
        )  # fmt: skip
    np.savez_compressed(
        HERE / "hf_sam" / "outputs.npz", images=images, **asked,
        pred_masks=out.pred_masks.numpy(), iou_scores=out.iou_scores.numpy(),
    )  # fmt: skip


if __name__ == "__main__":
    np.savez_compressed(HERE / "sam.npz", **of_official())
    hf_sam()
