"""What prompts cut out, of a model whose answers are known; the surest points and boxes worked out by hand."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mmjax.data.scenes import Scene, enclosing
from mmjax.evals import automatic_masks, segmentation_prompted
from mmjax.models import sam
from mmjax.nn.outputs import Request

SIZE = 16


class Vision(NamedTuple):
    image_size: int = SIZE


class Config(NamedTuple):
    vision: Vision = Vision()
    image_mean: tuple = (0.5, 0.5, 0.5)
    image_std: tuple = (0.5, 0.5, 0.5)


class Filled(nn.Module):
    """Asked by a box, fills it; by a point, takes all of one brightness. Its first mask is right and said to be; the
    second, all of the picture, is thought less of, and the third is empty."""

    config: Config = Config()

    def encode_image(self, images: jax.Array) -> jax.Array:  # [B 16 16 3] -> brightness [B 16 16 1]
        return images.astype(jnp.float32)[..., :1]

    def encode_prompts(self, points=None, boxes=None):
        return points[:, :, 0] if boxes is None else boxes

    def decode(self, image, sparse):
        x, y = jnp.meshgrid(jnp.arange(SIZE), jnp.arange(SIZE))
        if sparse.shape[-1] == 4:
            low, high = sparse[..., None, None, :2], sparse[..., None, None, 2:]
            at = jnp.stack([x, y], -1) + 0.5
            right = ((low < at) & (at < high)).all(-1)
        else:
            place = sparse.astype(int)
            shade = jax.vmap(lambda image, at: image[at[:, 1], at[:, 0], 0])(image, place)
            right = image[:, None, ..., 0] == shade[..., None, None]
        masks = jnp.stack([right, jnp.ones_like(right), jnp.zeros_like(right)], 2)
        scores = jnp.broadcast_to(jnp.array([0.9, 0.5, 0.1]), masks.shape[:3])
        return sam.SamOutput(masks * 20.0 - 10.0, scores)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A bright and a less bright corner, each of which is not all of its box."""

    def scenes(self, split: str, count: int) -> Scene:
        masks = np.zeros((count, 3, SIZE, SIZE), bool)  # the third is not there
        masks[:, 0, 1:8, 1:8] = masks[:, 1, 9:15, 9:12] = True
        masks[:, 0, 5:, 5:8] = False
        images = np.zeros((count, SIZE, SIZE, 3), np.uint8)
        images[masks[:, 0]], images[masks[:, 1]] = 200, 100
        boxes, present = enclosing(masks)
        return Scene(images, masks, boxes, present, present.astype(np.float32))


def test_each_prompt_is_scored_over_the_objects_that_are_there():
    result = segmentation_prompted.PromptedMasks("a", count=5)(Filled(), {}, Blocks(), jax.random.key(0))
    first, second = 7 * 7 - 3 * 3, 6 * 3  # pixels
    expected = {
        "a/point_iou": 1.0,
        "a/point_best_iou": 1.0,
        "a/point_iou_chance": (first + second) / 2 / SIZE**2,
        "a/box_iou": (first / 49 + 1) / 2,
        "a/box_iou_chance": (first / 49 + 1) / 2,
    }
    assert result.metrics == pytest.approx(expected)
    (picture,) = result.pictures.values()
    assert picture.ndim == 3


def test_the_innermost_pixel():
    mask = np.zeros((2, 9, 9), bool)
    mask[0, 1:6, 2:7] = mask[0, 1:2] = True
    mask[1, :3, 0:3] = True  # at the picture's edge
    np.testing.assert_array_equal(segmentation_prompted.innermost(mask), [[4, 3], [1, 1]])


def test_everything_is_found_once_and_the_surest_comes_first():
    scene = Blocks().scenes("a", 1)
    finder = automatic_masks.AutomaticMasks(side=8, at_once=24, iou=0.4, stability=0.9)
    found = finder(Filled(), {}, scene.images[0])
    assert [round(float(x), 3) for x in found.scores] == [0.9, 0.9, 0.9]
    # The ground, whose box is the picture's, hides the mask of all of it.
    masks = {mask.tobytes() for mask in found.masks}
    assert masks == {scene.masks[0, 0].tobytes(), scene.masks[0, 1].tobytes(), (~scene.masks[0].any(0)).tobytes()}
    for mask, (x0, y0, x1, y1), (x, y) in zip(found.masks, found.boxes, found.points, strict=True):
        rows, columns = np.nonzero(mask)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max(), rows.max())
        assert mask[int(y), int(x)]
    nothing = dataclasses.replace(finder, iou=0.95)(Filled(), {}, scene.images[0])
    assert nothing.masks.shape == (0, SIZE, SIZE)


def test_ones_own_pictures_are_asked_about():
    everything = automatic_masks.Everything("a", automatic_masks.AutomaticMasks(side=4, at_once=16))
    own = Request(images=(Blocks().scenes("a", 1).images[0],))
    answer = everything(Filled(), {}, own, Blocks(), jax.random.key(0))
    assert "0.90" in answer.text
    assert answer.pictures["masks_1"].shape == (SIZE, 2 * SIZE, 3)
    with pytest.raises(ValueError, match="knows no words"):
        everything(Filled(), {}, Request(texts=("fox",)), Blocks(), jax.random.key(0))


def test_scenes_of_another_size_are_refused_with_both_numbers():
    other = Filled(Config(Vision(32)))
    with pytest.raises(ValueError, match="32 pixels, got 16"):
        segmentation_prompted.PromptedMasks("a", count=2)(other, {}, Blocks(), jax.random.key(0))
