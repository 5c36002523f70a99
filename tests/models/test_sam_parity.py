"""SAM next to transformers.SamModel and facebookresearch/segment-anything, live: random sizes and weights, read by
mmjax.weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sam_names
from closeness import close, close_trees

from mmjax import weights
from mmjax.evals import automatic_masks
from mmjax.models import sam

torch = pytest.importorskip("torch", reason="needs the [parity] extra")
transformers = pytest.importorskip("transformers", reason="needs the [parity] extra")

pytestmark = pytest.mark.parity
PATCH, WIDTH, DIM = 5, 12, 16


def randomise(model, seed: int) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if not name.startswith("pixel_"):
                mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                weight.copy_(mean + (1.0 if "positional_e" in name else 0.3) * torch.randn(weight.shape))


def of_transformers(seed: int, grid: int, window: int, everywhere: list[int]) -> "transformers.SamModel":
    side = PATCH * grid
    config = transformers.SamConfig(
        vision_config=transformers.SamVisionConfig(
            hidden_size=WIDTH, output_channels=DIM, num_hidden_layers=3, num_attention_heads=2, image_size=side,
            patch_size=PATCH, window_size=window, global_attn_indexes=everywhere, num_pos_feats=DIM // 2, mlp_dim=22,
        ),
        prompt_encoder_config=transformers.SamPromptEncoderConfig(
            hidden_size=DIM, image_size=side, patch_size=PATCH, mask_input_channels=8
        ),
        mask_decoder_config=transformers.SamMaskDecoderConfig(
            hidden_size=DIM, mlp_dim=26, num_attention_heads=4, iou_head_hidden_dim=14, layer_norm_eps=10.0**-seed
        ),
    )  # fmt: skip
    model = transformers.SamModel._from_config(config, attn_implementation="eager").eval()
    randomise(model, seed)
    return model


def official(seed: int, grid: int, window: int, everywhere: tuple[int, ...]):
    pytest.importorskip("segment_anything", reason="pip install --no-deps segment-anything")
    from segment_anything import modeling

    side = PATCH * grid
    encoder = modeling.ImageEncoderViT(
        img_size=side, patch_size=PATCH, embed_dim=WIDTH, depth=4, num_heads=3, mlp_ratio=2, out_chans=DIM,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=window,
        global_attn_indexes=everywhere,
    )  # fmt: skip
    prompts = modeling.PromptEncoder(DIM, (grid, grid), (side, side), mask_in_chans=8)
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=DIM, num_heads=8, mlp_dim=20)
    decoder = modeling.MaskDecoder(transformer_dim=DIM, transformer=transformer, iou_head_hidden_dim=12)
    model = modeling.Sam(encoder, prompts, decoder).eval()
    randomise(model, seed)
    return model


def runs(model: sam.SAM) -> list[list[int]]:
    return [list(range(run.first, run.first + run.depth)) for run in model.config.vision.runs]


def asked(rng: np.random.Generator, side: int, grid: int, lead: tuple[int, ...]) -> dict[str, np.ndarray]:
    corners = np.sort(rng.uniform(0, side, (*lead, 2, 2)), -2)
    return {
        "points": rng.uniform(0, side, (*lead, 3, 2)).astype(np.float32),
        "labels": rng.choice([-1, 0, 1], (*lead, 3)),
        "boxes": corners.reshape(*lead, 4).astype(np.float32),
        "masks": (3 * rng.normal(size=(*lead, 4 * grid, 4 * grid))).astype(np.float32),
    }


@pytest.mark.parametrize(("seed", "grid", "window", "everywhere"), [(5, 4, 3, [1]), (6, 3, 3, [0, 2])])
def test_masks_scores_and_gradients_of_transformers(tmp_path, seed, grid, window, everywhere):
    theirs = of_transformers(seed, grid, window, everywhere)
    theirs.save_pretrained(tmp_path)
    model, variables = weights.load_hf(tmp_path)
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, PATCH * grid, PATCH * grid, 3)).astype(np.float32)
    given = asked(rng, PATCH * grid, grid, (2, 3))
    masks = given["masks"][:, :1]  # one for all prompts of a picture: transformers has no more
    out = theirs(
        torch.tensor(images.transpose(0, 3, 1, 2)), input_points=torch.tensor(given["points"]),
        input_labels=torch.tensor(given["labels"]), input_boxes=torch.tensor(given["boxes"]),
        input_masks=torch.tensor(masks), multimask_output=True,
    )  # fmt: skip
    factors = [rng.normal(size=x.shape).astype(np.float32) for x in (out.pred_masks, out.iou_scores)]
    total = sum((x * torch.tensor(f)).mean() for x, f in zip((out.pred_masks, out.iou_scores), factors, strict=True))
    total.backward()

    def weighted(variables):
        ours = model.apply(variables, images, given["points"], given["labels"], given["boxes"], masks)
        return sum(jnp.mean(x * f) for x, f in zip((ours.pred_masks, ours.iou_scores), factors, strict=True)), ours

    (value, ours), gradients = jax.jit(jax.value_and_grad(weighted, has_aux=True))(variables)
    close("masks", ours.pred_masks, out.pred_masks.detach().numpy(), relative=1e-5)
    close("scores", ours.iou_scores, out.iou_scores.detach().numpy(), relative=1e-5)
    close("loss", value, total.item(), relative=1e-5)
    named = {
        name: np.zeros(x.shape, np.float32) if x.grad is None or "positional" in name else x.grad.numpy()
        for name, x in theirs.named_parameters()
    }  # frequencies are a parameter there, which the authors' are not
    found, wanted = gradients["params"], sam_names.tree(named, runs(model), sam_names.HF)
    # Behind these is a norm of four channels, which may hardly differ: it divides rounding by their deviation.
    norms = [tree["prompt"].pop("mask_embed") for tree in (found, wanted)]
    close_trees(found, wanted, relative=1e-4)
    close_trees(*norms, relative=1e-2)


@pytest.mark.parametrize("kinds", ["p", "b", "pb", "m", "pbm", ""])
def test_every_kind_of_prompt_of_the_original(tmp_path, kinds):
    theirs = official(len(kinds), 4, 3, (1, 3))
    torch.save(theirs.state_dict(), tmp_path / "sam.pth")
    model, variables = weights.load_sam(tmp_path / "sam.pth")
    rng = np.random.default_rng(len(kinds))
    images = rng.normal(size=(1, 20, 20, 3)).astype(np.float32)
    given = asked(rng, 20, 4, (2,))
    points = (torch.tensor(given["points"]), torch.tensor(given["labels"])) if "p" in kinds else None
    boxes = torch.tensor(given["boxes"]) if "b" in kinds else None
    masks = torch.tensor(given["masks"][:, None]) if "m" in kinds else None
    sparse, dense = theirs.prompt_encoder(points, boxes, masks)
    embeds = theirs.image_encoder(torch.tensor(images.transpose(0, 3, 1, 2)))
    for multimask in (False, True):
        places = theirs.prompt_encoder.get_dense_pe()
        logits, scores = theirs.mask_decoder(embeds, places, sparse, dense, multimask)
        ours = jax.jit(partial(model.apply, multimask=multimask))(
            variables, images, *((given["points"][None], given["labels"][None]) if points else (None, None)),
            None if boxes is None else given["boxes"][None], None if masks is None else given["masks"][None],
        )  # fmt: skip
        close("masks", ours.pred_masks[0], logits.detach().numpy(), relative=1e-5)
        close("scores", ours.iou_scores[0], scores.detach().numpy(), relative=1e-5)


def test_pictures_of_any_shape_and_everything_in_them(tmp_path):
    theirs = official(9, 5, 2, (0, 3))
    from segment_anything import SamAutomaticMaskGenerator

    torch.save(theirs.state_dict(), tmp_path / "sam.pth")
    model, variables = weights.load_sam(tmp_path / "sam.pth")
    y, x = np.mgrid[:37, :19]
    picture = np.uint8(127 + 100 * np.stack([np.sin(x / 3 + y / 7), np.sin(x / 2 - y / 5), np.cos(y / 4)], -1))
    found = automatic_masks.AutomaticMasks(4, 7, -9.0, 0.3, offset=0.1, overlap=0.95)(model, variables, picture)
    generator = SamAutomaticMaskGenerator(
        theirs, points_per_side=4, points_per_batch=7, pred_iou_thresh=-9.0, stability_score_thresh=0.3,
        stability_score_offset=0.1, box_nms_thresh=0.95,
    )  # fmt: skip
    expected = generator.generate(picture)
    close("scores", found.scores, np.array([one["predicted_iou"] for one in expected]), relative=1e-5)
    close("stability", found.stability, np.array([one["stability_score"] for one in expected]), relative=1e-5)
    np.testing.assert_array_equal(found.masks, np.stack([one["segmentation"] for one in expected]))
