"""Attention masks and patch probes of toy models, whose every number can be worked out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import reduce
from flax import linen as nn

from mmjax.data.scenes import Scene, enclosing
from mmjax.evals import segmentation
from mmjax.nn.outputs import Request

SIZE, PATCH = 16, 4


class Brightness(nn.Module):
    """Head 0 looks at dark patches, head 1 at bright ones; a patch is its mean colour."""

    def attend(self, images: jax.Array) -> jax.Array:  # [B 16 16 3] -> [B 2 16]
        bright = self.encode_patches(images)[..., 0] / 255
        weights = jnp.stack([1 - bright, bright], 1) + 1e-6
        return weights / weights.sum(-1, keepdims=True)

    def encode_patches(self, images: jax.Array) -> jax.Array:
        return reduce(images.astype(jnp.float32), "b (h p) (w q) c -> b (h w) c", "mean", p=PATCH, q=PATCH)


@dataclasses.dataclass(frozen=True)
class Blocks:
    """White rectangles of whole patches on black: two in a scene, which may touch."""

    def scenes(self, split: str, count: int) -> Scene:
        rng = np.random.default_rng(len(split))
        masks = np.zeros((count, 2, 4, 4), bool)
        for scene in masks:
            for mask in scene:
                (top, left), (height, width) = rng.integers(0, 3, 2), rng.integers(1, 3, 2)
                mask[top : top + height, left : left + width] = True
        masks = masks.repeat(PATCH, 2).repeat(PATCH, 3)
        images = np.repeat(255 * masks.any(1)[..., None], 3, -1).astype(np.uint8)
        return Scene(images, masks, *enclosing(masks), np.ones(masks.shape[:2], np.float32))


def test_the_kept_patches_are_the_fewest_that_hold_the_mass():
    attention = np.array([[0.1, 0.4, 0.2, 0.3], [4.0, 1.0, 3.0, 2.0]])
    np.testing.assert_array_equal(
        segmentation.most_attended(attention, 0.65), [[False, True, False, True], [True, False, True, False]]
    )
    # As facebookresearch/dino's visualize_attention.py: all whose running sum, from the least, is above 1 - mass.
    np.testing.assert_array_equal(segmentation.most_attended(attention, 0.69)[0], [False, True, False, True])
    np.testing.assert_array_equal(segmentation.most_attended(attention, 0.71)[0], [False, True, True, True])


def test_patches_become_blocks_of_pixels():
    pixels = segmentation.as_pixels(np.array([[True, False, False, True]]), 4)
    np.testing.assert_array_equal(pixels[0], np.kron(np.eye(2, dtype=bool), np.ones((2, 2), bool)))


def test_intersection_over_union_of_hand_counted_masks():
    one, other = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    one[0, :2], other[0, 1:3] = True, True  # 4 of 12 pixels are in both
    np.testing.assert_allclose(segmentation.iou(one, other), [1 / 3, 1.0])


def test_the_head_is_chosen_on_the_training_split():
    result = segmentation.Attention("test", count=20)(Brightness(), {}, Blocks(), jax.random.key(0))
    objects = Blocks().scenes("test", 20).masks.any(1)
    assert result.metrics["test/attention_iou_chance"] == pytest.approx(objects.mean((1, 2)).mean())
    # Bright patches attract all alike, so about 60 % of them are kept; dark ones would score zero.
    assert 0.5 < result.metrics["test/attention_iou"] < 0.9
    whole = segmentation.Attention("test", mass=1.0 - 1e-4, count=20)(Brightness(), {}, Blocks(), jax.random.key(0))
    assert whole.metrics["test/attention_iou"] == pytest.approx(1, abs=1e-6)
    assert list(result.pictures) == ["test attention"]


def test_a_probe_finds_what_a_patch_shows():
    result = segmentation.PatchProbe("test", count=30)(Brightness(), {}, Blocks(), jax.random.key(0))
    assert result.metrics["test/patch_iou"] == 1
    assert result.metrics["test/patch_iou_limit"] == 1
    assert result.metrics["test/patch_iou_chance"] < 0.6


def test_no_probe_is_better_than_whole_patches():
    @dataclasses.dataclass(frozen=True)
    class Shifted(Blocks):
        """Rectangles that patches cut."""

        def scenes(self, split, count):
            scene = super().scenes(split, count)
            images, masks = (np.roll(x, 1, axis=axis) for x, axis in ((scene.images, 1), (scene.masks, 2)))
            return scene._replace(images=images, masks=masks)

    metrics = segmentation.PatchProbe("test", count=30)(Brightness(), {}, Shifted(), jax.random.key(0)).metrics
    assert 0.5 < metrics["test/patch_iou"] <= metrics["test/patch_iou_limit"] < 1


def test_looking_at_ones_own_pictures():
    look = segmentation.Look("test")
    own = Request(images=(np.full((30, 20, 3), 200, np.uint8),))
    answer = look(Brightness(), {}, own, Blocks(), jax.random.key(0))
    assert "head 2" in answer.text
    assert look(Brightness(), {}, Request(), Blocks(), jax.random.key(0)).pictures["attention"].size > (
        answer.pictures["attention"].size
    )
    with pytest.raises(ValueError, match="knows no words"):
        look(Brightness(), {}, Request(texts=("fox",)), Blocks(), jax.random.key(0))


def test_scenes_without_a_square_grid_or_without_objects_are_refused():
    with pytest.raises(ValueError, match="12 patches are no square"):
        segmentation.as_pixels(np.zeros((1, 12)), 16)

    class Bare:
        def scenes(self, split: str, count: int) -> Scene:
            images, nothing = np.zeros((count, SIZE, SIZE, 3), np.uint8), np.zeros((count, 1, SIZE, SIZE), bool)
            return Scene(
                images, nothing, np.zeros((count, 1, 4), np.float32), np.zeros((count, 1), bool), np.zeros((count, 1))
            )

    with pytest.raises(ValueError, match="all 32 training rows are of class 0"):
        segmentation.PatchProbe("a", count=2)(Brightness(), {}, Bare(), jax.random.key(0))
