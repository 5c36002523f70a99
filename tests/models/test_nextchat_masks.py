"""NExT-Chat's third stage against NExT-ChatV/NExT-Chat (stored outputs, tests/goldens/make_nextchat_masks.py)."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sam_names
from clip_names import group, linear
from closeness import close, close_trees

from mmjax.models import llama, nextchat, sam, vit, vitdet
from mmjax.ops import segmentation
from mmjax.weights.engine import flatten

SAM = sam.SamConfig(
    vitdet.ViTDetConfig(24, 6, width=16, depth=2, num_heads=2, hidden=24, window=3, global_layers=(1,)),
    dim=16, mask_channels=8, num_heads=2, hidden=20, iou_hidden=12,
)  # fmt: skip
LANGUAGE = llama.LlamaConfig(20, 32, width=12, depth=1, num_heads=2, num_kv_heads=2, head_dim=6, hidden=8)
VISION = vit.ViTConfig(16, 8, width=8, depth=2, num_heads=2, hidden=8, epsilon=1e-5)
CONFIG = nextchat.NextChatSegConfig(VISION, LANGUAGE, image_token=17, at_token=18, box_token=19, sam_config=SAM)
MODEL = nextchat.NextChatSeg(CONFIG)


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parents[1] / "goldens" / "nextchat_masks.npz")


@pytest.fixture(scope="module")
def params(golden):
    flat = {name: x.astype(np.float32) for name, x in group(golden, "weights").items()}
    prompts = {"up": linear(flat, "seg_prompt_mlp.0"), "down": linear(flat, "seg_prompt_mlp.2")}
    return {"seg_prompt": prompts, "sam": sam_names.tree(flat, [[0], [1]], sam_names.OFFICIAL)}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_losses_of_masks_equal_the_original(golden, count):
    given = group(golden, f"loss/{count}")
    pad = lambda x: np.concatenate([x[:, 0], np.full((2, *x.shape[2:]), 9.0, np.float32)])[None]  # noqa: E731
    logits, scores, masks = (pad(given[name]) for name in ("logits", "scores", "masks"))
    learned = np.arange(count + 2)[None] < count  # two more that don't count

    def value(logits, scores):
        parts = nextchat.mask_losses(logits, scores, masks, learned)
        return 20 * parts["focal"] + parts["dice"] + parts["iou_error"]

    loss, gradients = jax.jit(jax.value_and_grad(value, (0, 1)))(logits, scores)
    close("loss", loss, given["loss"], relative=1e-5)
    for name, gradient in zip(("logits", "scores"), gradients, strict=True):
        close(f"gradient {name}", gradient[0, :count], given[f"{name}_gradient"][:, 0], relative=1e-4)
        assert not gradient[0, count:].any()


@pytest.mark.parametrize("prefix", ["", "several/"])
def test_masks_their_loss_and_gradients_equal_the_original(golden, params, prefix):
    """One mask for each of two pictures, and three masks of one picture."""
    given = {name: golden[f"{prefix}{name}"] for name in ("images", "states", "boxes", "wanted")}
    images = given["images"].transpose(0, 2, 3, 1)
    rows = lambda x: x.reshape(len(images), -1, *x.shape[1:])  # noqa: E731  [B K ...]
    states, boxes, wanted = (rows(given[name]) for name in ("states", "boxes", "wanted"))
    learned = np.ones(states.shape[:2], bool)

    def value(params, states, boxes):
        out = MODEL.apply({"params": params}, images, states, boxes, method="segment")
        logits, scores = segmentation.resize(out.pred_masks[:, :, 0], 24, 24), out.iou_scores[:, :, 0]
        parts = nextchat.mask_losses(logits, scores, wanted, learned)
        return 20 * parts["focal"] + parts["dice"] + parts["iou_error"], (logits, scores)

    if prefix:
        loss, (logits, scores) = jax.jit(value)(params, states, boxes)
    else:
        step = jax.jit(jax.value_and_grad(value, (0, 1, 2), has_aux=True))
        (loss, (logits, scores)), (trained, *inner) = step(params, states, boxes)
    close("masks", logits, rows(golden[f"{prefix}logits"][:, 0]), relative=2e-5)
    close("scores", scores, rows(golden[f"{prefix}scores"][:, 0]), relative=2e-5)
    close("loss", loss, golden[f"{prefix}loss"], relative=1e-5)
    if not prefix:
        for name, gradient in zip(("states", "boxes"), inner, strict=True):
            close(f"gradient {name}", gradient, rows(golden[f"{name}_gradient"]), relative=1e-4)
        theirs = group(golden, "gradients")
        expected = {"up": linear(theirs, "seg_prompt_mlp.0"), "down": linear(theirs, "seg_prompt_mlp.2")}
        close_trees(trained["seg_prompt"], expected, relative=1e-4)
        names = ("in_projection", "middle", "out_projection")
        theirs = {our: linear(theirs, f"mask_decoder.iou_prediction_head.layers.{i}") for i, our in enumerate(names)}
        close_trees(trained["sam"]["decoder"]["iou_head"], theirs, relative=1e-4)


def test_the_third_stage_trains_prompts_and_decoder():
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))["params"]
    names = [name for name in flatten(shapes) if re.search(nextchat.MASK_STAGE, name)]
    assert {name.split("/")[0] for name in names} == {"seg_prompt", "sam"}
    assert not any(name.startswith("sam/vision") for name in names)
    count = sum(x.size for x in jax.tree.leaves(shapes["seg_prompt"]))
    assert count == 12 * 12 + 12 + (12 + 1) * 4 * 16


def test_masks_count_where_the_assistant_says_their_places():
    ids, rng = np.array([[1, 18, 19, 3, 18, 19, 2], [1, 4, 5, 6, 18, 19, 2]]), np.random.default_rng(1)
    batch = {
        "input_ids": ids, "spoken": np.arange(7) >= np.array([[3], [4]]), "boxes": np.zeros((2, 2, 4)),
        "sam_images": None, "masks": rng.random((2, 2, 24, 24)) < 0.3,
    }  # fmt: skip

    class Stub:
        config = CONFIG

        def apply(self, variables, *inputs, method=None, boxes=None):
            if method == "segment":
                logits = jnp.asarray(np.random.default_rng(2).normal(size=(2, 2, 1, 16, 16)), jnp.float32)
                return sam.SamOutput(logits, jnp.full((2, 2, 1), 0.4))
            return nextchat.NextChatOutput(*[None] * 8)

    loss = lambda masks: nextchat.mask_loss(Stub(), {}, {**batch, "masks": masks}, None, 0)  # noqa: E731
    value, aux = loss(batch["masks"])
    parts = aux.metrics
    np.testing.assert_allclose(value, 20 * parts["focal"] + parts["dice"] + parts["iou_error"], rtol=1e-6)
    other = batch["masks"].copy()
    other[0, 0], other[1, 1] = True, True  # of the question, and of no place at all
    np.testing.assert_allclose(loss(other)[0], value, rtol=1e-6)
    other[0, 1] = True
    assert abs(loss(other)[0] - value) > 1e-3


def test_pictures_stand_in_the_middle_of_the_square_and_masks_come_back(golden):
    picture = golden["picture"]
    fitted = nextchat.square_for_sam(picture, 24, sam.SamConfig.image_mean, sam.SamConfig.image_std)
    np.testing.assert_allclose(fitted, golden["fitted"], atol=1e-5)
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = 8, 3, 20, 9  # pixels of the picture
    mask = np.zeros((width, width), np.float32) - 1  # the square, with (31 - 13) // 2 = 9 rows above
    mask[9 + y0 : 9 + y1, x0:x1] = 1
    found = np.asarray(nextchat.to_picture(mask, height, width)) > 0
    assert found.shape == (height, width)
    assert found.sum() == (x1 - x0) * (y1 - y0)
    assert found[y0:y1, x0:x1].all()
