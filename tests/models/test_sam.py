"""SAM against facebookresearch/segment-anything and transformers (stored, tests/goldens/make_sam.py), then what users
rely on."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sam_names
from clip_names import close, close_trees, group

from mmjax import weights
from mmjax.evals import automatic_masks
from mmjax.models import sam, vitdet
from mmjax.nn.stack import Compute
from mmjax.ops import images as image_ops
from mmjax.ops import segmentation
from mmjax.weights.engine import flatten

GOLDENS = Path(__file__).parents[1] / "goldens"
VISION = vitdet.ViTDetConfig(30, 6, width=12, depth=3, num_heads=3, hidden=18, window=3, global_layers=(2,))
CONFIG = sam.SamConfig(VISION, dim=16, mask_channels=8, num_heads=2, hidden=20, iou_hidden=12)
MODEL = sam.SAM(CONFIG)
RUNS = [[0, 1], [2]]
encode = jax.jit(functools.partial(MODEL.apply, method="encode_image"))


@jax.jit
def embed(variables, points=None, labels=None, boxes=None):
    return MODEL.apply(variables, points, labels, boxes, method="encode_prompts")


@functools.partial(jax.jit, static_argnames="multimask")
def decode(variables, image, sparse=None, masks=None, multimask=True, counts=None):
    return MODEL.apply(variables, image, sparse, masks, multimask=multimask, counts=counts, method="decode")


@pytest.fixture(scope="module")
def golden():
    found = np.load(GOLDENS / "sam.npz")
    return {name: x.astype(np.float32) if (x := found[name]).dtype == np.float16 else x for name in found}


@pytest.fixture(scope="module")
def variables(golden):
    return {"params": sam_names.tree(group(golden, "weights"), RUNS, sam_names.OFFICIAL)}


@pytest.fixture(scope="module")
def asked(golden):
    """Two prompts of one picture, [1 2 ...] each."""
    inputs = group(golden, "inputs")
    return {
        "points": inputs["points"][None], "labels": inputs["labels"][None].astype(np.int32),
        "boxes": inputs["boxes"][None], "masks": inputs["masks"][None, :, 0],
    }  # fmt: skip


def prompts(asked: dict, kinds: str) -> tuple:
    points = (asked["points"], asked["labels"]) if "p" in kinds else (None, None)
    return *points, asked["boxes"] if "b" in kinds else None


def channels_last(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1)


def test_image_embeddings_equal_the_original(golden, variables):
    embeds = encode(variables, channels_last(golden["inputs/images"]))
    close("embeddings", embeds, channels_last(golden["embeds"]), relative=1e-5)


@pytest.mark.parametrize(("kinds", "count"), [("p", 1), ("pbm", 3), ("none", 3)])
def test_masks_and_scores_equal_the_original(golden, variables, asked, kinds, count):
    image, masks = channels_last(golden["embeds"])[:1], asked["masks"] if "m" in kinds else None
    sparse = embed(variables, *prompts(asked, kinds.replace("none", "")))
    out, expected = (
        decode(variables, image, sparse, masks, multimask=count == 3),
        group(golden, f"decoded/{kinds}/{count}"),
    )
    close("masks", out.pred_masks[0], expected["masks"], relative=1e-5)
    close("scores", out.iou_scores[0], expected["scores"], relative=1e-5)


def test_gradients_through_the_encoder_equal_the_original(golden, variables, asked):
    factors = group(golden, "factors")

    def weighted(variables):
        images = channels_last(golden["inputs/images"])[1:]
        out = MODEL.apply(variables, images, asked["points"], asked["labels"], asked["boxes"], asked["masks"])
        return (out.pred_masks[0] * factors["masks"]).mean() + (out.iou_scores[0] * factors["scores"]).mean()

    value, gradients = jax.jit(jax.value_and_grad(weighted))(variables)
    close("loss", value, golden["total"], relative=1e-5)
    expected = sam_names.tree(group(golden, "gradients"), RUNS, sam_names.OFFICIAL)
    assert not gradients["params"]["prompt"]["frequencies"].any()  # a constant
    close_trees(gradients["params"], expected, relative=1e-4)


def test_a_folder_of_transformers_gives_the_same_masks(tmp_path):
    model, variables = weights.load_hf(GOLDENS / "hf_sam")
    stored = np.load(GOLDENS / "hf_sam" / "outputs.npz")
    names = ("images", "input_points", "input_labels", "input_boxes")
    out = jax.jit(model.apply)(variables, *(stored[name] for name in names))
    assert model.config.epsilon == 1e-6
    close("masks", out.pred_masks, stored["pred_masks"], relative=1e-5)
    close("scores", out.iou_scores, stored["iou_scores"], relative=1e-5)

    weights.save_hf(tmp_path, model, variables)
    again, same = weights.load_hf(tmp_path)
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    from safetensors.numpy import load_file

    written, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, GOLDENS / "hf_sam"))
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)
    assert theirs.keys() - written.keys() <= {"prompt_encoder.shared_embedding.positional_embedding"}


def test_a_file_of_the_original_is_read_without_a_config(golden, variables, tmp_path):
    from safetensors.numpy import save_file

    save_file(group(golden, "weights"), tmp_path / "sam.safetensors")
    model, loaded = weights.load_sam(tmp_path / "sam.safetensors", num_heads=2)
    assert model.config == CONFIG
    ours, theirs = flatten(loaded), flatten(variables)
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name)
    save_file({"x": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no SAM of segment-anything"):
        weights.load_sam(tmp_path / "other.safetensors")


def test_tables_of_another_grid_are_those_of_the_original(golden):
    table = image_ops.resize_linear(golden["table"], 13)
    apart = np.arange(7)[:, None] - np.arange(7) + 6
    close("table", np.asarray(table)[apart], golden["apart"], relative=1e-5)


def test_weights_for_another_size_of_pictures():
    model, variables = weights.load_hf(GOLDENS / "hf_sam", image_size=48)
    assert model.config.vision.grid == 8
    params = variables["params"]["vision"]
    assert params["pos_embed"].shape == (8, 8, 12)
    assert params["run0"]["layers"]["attention"]["rel_pos_h"].shape == (1, 15, 4)
    old = weights.load_hf(GOLDENS / "hf_sam")[1]["params"]["vision"]["pos_embed"]
    # Between centres: new cell 1 lies at 0.4375 of the old grid, along both axes.
    at = [0.5625, 0.4375]
    close("between", params["pos_embed"][1, 1], np.einsum("i,j,ijd->d", at, at, old[:2, :2]), relative=1e-5)
    jax.eval_shape(model.apply, variables, np.zeros((1, 48, 48, 3), np.float32))


def test_pictures_of_any_shape_go_in_and_come_out_as_in_the_original(golden):
    fitted = image_ops.fit_longest_side(golden["picture"], 30, CONFIG.image_mean, CONFIG.image_std)
    close("fitted", fitted, golden["fitted"], relative=1e-5)
    height, width = image_ops.longest_side(23, 41, 30)
    points = np.array([[0.0, 0.0], [40.0, 22.0], [7.5, 3.0]]) * [width / 41, height / 23]
    np.testing.assert_allclose(points, golden["coordinates"], rtol=1e-12)
    pictured = segmentation.to_picture(golden["logits"], 23, 41, 30)
    close("pictured", pictured, golden["pictured"], relative=1e-5)


@pytest.mark.parametrize(
    ("make", "count"), [(sam.vit_b, 93_735_472), (sam.vit_l, 312_342_832), (sam.vit_h, 641_090_608)]
)
def test_published_sizes_have_the_published_number_of_parameters(make, count):
    config = make()
    images = jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)
    variables = jax.eval_shape(sam.SAM(config).init, jax.random.key(0), images)
    frequencies = 2 * config.dim // 2  # a buffer there
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == count + frequencies


def test_tokens_that_do_not_count_change_nothing(golden, variables, asked):
    image = channels_last(golden["embeds"])[:1]
    sparse = np.asarray(embed(variables, *prompts(asked, "p")))  # three points and what follows them
    expected = decode(variables, image, sparse, multimask=False)
    longer = np.concatenate([sparse[:, :, :2], np.full((1, 2, 2, 16), 7.0, np.float32), sparse[:, :, 2:]], 2)
    counts = np.ones((1, 2, 6), bool)
    counts[:, :, 2:4] = False
    out = decode(variables, image, longer, multimask=False, counts=counts)
    close("masks", out.pred_masks, expected.pred_masks, relative=1e-5)


def test_a_box_is_two_points(variables, asked):
    corners = asked["boxes"].reshape(1, 2, 2, 2)
    labels = np.broadcast_to([sam.TOP_LEFT, sam.BOTTOM_RIGHT], (1, 2, 2))
    points = MODEL.apply(variables, corners, labels, method="encode_points")
    np.testing.assert_array_equal(points, MODEL.apply(variables, boxes=asked["boxes"], method="encode_prompts"))


def test_bytes_are_normalised(variables):
    picture = np.random.default_rng(0).integers(0, 256, (1, 30, 30, 3)).astype(np.uint8)
    fitted = image_ops.fit_longest_side(picture[0], 30, CONFIG.image_mean, CONFIG.image_std)
    np.testing.assert_allclose(encode(variables, picture), encode(variables, np.stack([fitted] * 2))[:1], atol=1e-5)


def test_places_stay_float32_in_bfloat16(variables, asked):
    model = sam.SAM(dataclasses.replace(CONFIG, compute=Compute(jnp.bfloat16)))
    images = np.zeros((1, 30, 30, 3), np.float32)
    out = jax.eval_shape(model.apply, variables, images, *prompts(asked, "p"))
    assert out.pred_masks.dtype == out.iou_scores.dtype == jnp.float32
    assert (
        jax.eval_shape(functools.partial(model.apply, method="encode_image"), variables, images).dtype == jnp.bfloat16
    )
    points = model.apply(variables, asked["points"], asked["labels"], method="encode_points")
    np.testing.assert_array_equal(
        points, MODEL.apply(variables, asked["points"], asked["labels"], method="encode_points")
    )


def test_misshapen_input_is_refused_with_both_numbers():
    apply = functools.partial(jax.eval_shape, MODEL.init, jax.random.key(0))
    images = np.zeros((1, 30, 30, 3), np.float32)
    with pytest.raises(ValueError, match=r"images must be \[B 30 30 3\], got \[1, 30, 24, 3\]"):
        apply(images[:, :, :24])
    with pytest.raises(ValueError, match=r"points must be \[B P N 2\]"):
        apply(images, np.zeros((1, 2, 2)), np.zeros((1, 2), int))
    with pytest.raises(ValueError, match=r"boxes must be \[B P 4\]"):
        apply(images, None, None, np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"logits \[B P 20 20\], got \[1, 1, 30, 30\]"):
        apply(images, None, None, None, np.zeros((1, 1, 30, 30)))
    with pytest.raises(ValueError, match="multiple of patch_size"):
        dataclasses.replace(VISION, image_size=31)
    with pytest.raises(ValueError, match=r"global_layers must be in \[0, 3\)"):
        dataclasses.replace(VISION, global_layers=(3,))


def test_everything_in_a_picture_is_what_the_original_finds(golden, variables):
    iou, stability = golden["automatic/thresholds"]
    finder = automatic_masks.AutomaticMasks(4, 5, iou, stability, offset=0.2, overlap=1.0)
    found, expected = finder(MODEL, variables, golden["picture"]), group(golden, "automatic")
    np.testing.assert_array_equal(found.masks, expected["segmentation"])
    close("scores", found.scores, expected["predicted_iou"], relative=1e-5)
    close("stability", found.stability, expected["stability_score"], relative=1e-5)
    close("points", found.points, expected["point_coords"][:, 0], relative=1e-6)
    x0, y0, width, height = expected["bbox"].T
    np.testing.assert_array_equal(found.boxes, np.stack([x0, y0, x0 + width, y0 + height], -1))
    fewer = dataclasses.replace(finder, overlap=0.9)(MODEL, variables, golden["picture"])
    np.testing.assert_array_equal(fewer.masks, expected["fewer"])
