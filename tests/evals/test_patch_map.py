"""Patches that differ along three directions get the colours of these directions."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from mmjax.data import scenes
from mmjax.evals import patch_map

RNG = np.random.default_rng(0)


def test_three_directions_become_red_green_and_blue():
    amounts = RNG.uniform(size=(500, 3)) ** 2  # the heavier tail says which end is bright
    directions = np.linalg.qr(RNG.normal(size=(7, 3)))[0].T * [[5], [3], [2]]
    found, share = patch_map.colours(amounts @ directions + 1)
    assert share == pytest.approx(1)
    assert found.dtype == np.uint8
    for c in range(3):
        assert np.corrcoef(found[:, c], amounts[:, c])[0, 1] > 0.97


def test_objects_are_the_smaller_side_of_the_first_component():
    inside = RNG.uniform(size=400) < 0.2
    for sign in (1, -1):
        patches = RNG.normal(size=(400, 6)) * 0.1 + sign * np.where(inside, 3.0, -1.0)[:, None]
        np.testing.assert_array_equal(patch_map.objects(patches), inside)


def test_too_few_patches_are_refused():
    with pytest.raises(ValueError, match="four patches or more, got 3"):
        patch_map.colours(np.zeros((3, 5)))


class Nothing(nn.Module):
    def encode_patches(self, images):
        return np.zeros((images.shape[0], 16, 3), np.float32) + 0 * images.mean()


class Colours(nn.Module):
    """A patch is its mean colour."""

    def encode_patches(self, images):
        grid = images.astype(np.float32).reshape(images.shape[0], 4, 8, 4, 8, 3).mean((2, 4))
        return grid.reshape(images.shape[0], 16, 3)


class Scenes:
    def scenes(self, split, count):
        return scenes.EmojiScenes(scenes.Composer(32, (1, 2))).scenes(split, count)


def test_picture_and_share():
    result = patch_map.PatchMap("validation", count=6)(Colours(), {}, Scenes(), jax.random.key(0))
    assert result.metrics["validation/patch_variance"] == pytest.approx(1)  # three colours have three components
    picture = result.pictures["validation patch colours"]
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_a_collapsed_model_gets_its_picture_too():
    result = patch_map.PatchMap("validation", count=6)(Nothing(), {}, Scenes(), jax.random.key(0))
    assert result.metrics["validation/patch_variance"] == 0
    assert result.pictures["validation patch colours"].dtype == np.uint8
