"""Losses and measures of masks against torchvision and plain loops (tests/goldens/make_segmentation.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import segmentation

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "segmentation.npz")
LOGITS, TARGET = GOLDEN["logits"], GOLDEN["target"]


@pytest.mark.parametrize(("name", "alpha", "gamma"), [("focal", 0.25, 2.0), ("focal_bare", None, 1.5)])
def test_focal_loss_and_its_gradient_equal_torchvision(name, alpha, gamma):
    def weighted(x):
        value = segmentation.sigmoid_focal(x, TARGET, alpha, gamma)
        return (value * GOLDEN["weights"]).sum(), value

    gradient, value = jax.grad(weighted, has_aux=True)(LOGITS)
    np.testing.assert_allclose(value, GOLDEN[name], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, GOLDEN[f"{name}_gradient"], rtol=1e-4, atol=1e-6)


def test_focal_loss_of_logits_far_out_is_finite():
    x = jnp.array([80.0, -80.0, 0.0])
    for wanted in (0.0, 1.0):
        assert jnp.isfinite(jax.grad(lambda x, t=wanted: segmentation.sigmoid_focal(x, jnp.full(3, t)).sum())(x)).all()


def test_dice_and_its_gradient_equal_a_plain_account():
    for smooth in (1, 3):
        np.testing.assert_allclose(segmentation.dice(LOGITS, TARGET, smooth), GOLDEN[f"dice_{smooth}"], rtol=1e-5)
    gradient = jax.grad(lambda x: segmentation.dice(x, TARGET).sum())(LOGITS)
    np.testing.assert_allclose(gradient[1, 0], GOLDEN["dice_gradient"], rtol=1e-4, atol=1e-7)


def test_overlap_of_masks():
    np.testing.assert_allclose(segmentation.iou(LOGITS > 0, TARGET > 0), GOLDEN["iou"], rtol=1e-6)
    nothing = np.zeros((2, 2), bool)
    assert segmentation.iou(nothing, nothing) == 1
    assert segmentation.iou(nothing, ~nothing) == 0


def test_a_box_lies_about_the_mask():
    masks = np.zeros((3, 5, 7), bool)
    masks[0, 1:4, 2:3] = masks[0, 2, 5] = True
    masks[1, 4, 6] = True
    np.testing.assert_array_equal(segmentation.box_around(masks), [[2, 1, 6, 4], [6, 4, 7, 5], [0, 0, 0, 0]])


def test_a_random_pixel_is_any_of_the_mask_and_of_nothing_else():
    mask = np.zeros((3, 4), bool)
    mask[0, 3] = mask[1, 1] = mask[2, 0] = True
    pixels = segmentation.random_pixel(jax.random.key(0), np.broadcast_to(mask, (300, 3, 4)))
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    np.testing.assert_array_equal(found, [[0, 2], [1, 1], [3, 0]])
    assert counts.min() > 70
    assert not segmentation.random_pixel(jax.random.key(1), np.zeros((5, 3, 4), bool)).any()
