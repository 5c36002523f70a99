"""Boxes against torchvision (stored outputs, tests/goldens/make_boxes.py), and what must hold of any boxes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.ops import boxes

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "boxes.npz")
A, B = GOLDEN["a"], GOLDEN["b"]


@pytest.mark.parametrize("name", ["iou", "giou"])
def test_pairwise_and_matched_equal_torchvision(name):
    measure = getattr(boxes, name)
    for as_array in (np.asarray, jnp.asarray):
        a, b = as_array(A), as_array(B)
        pairs = measure(a[:, None], b)
        assert isinstance(pairs, np.ndarray) == isinstance(a, np.ndarray)
        np.testing.assert_allclose(pairs, GOLDEN[name], atol=1e-6)
        np.testing.assert_allclose(measure(a, b), np.diag(GOLDEN[name]), atol=1e-6)
    assert np.diag(GOLDEN["giou"]).min() < -0.5  # boxes that are apart were among them
    np.testing.assert_allclose(1 - boxes.giou(A, B), GOLDEN["giou_loss"], atol=1e-5)  # which adds 1e-7 to the areas


def test_gradients_of_giou_equal_torchvision():
    def weighted(a, b):
        return jnp.sum(boxes.giou(a[:, None], b) * GOLDEN["weight"])

    for ours, theirs in zip(jax.jit(jax.grad(weighted, (0, 1)))(A, B), ("grad_a", "grad_b"), strict=True):
        np.testing.assert_allclose(ours, GOLDEN[theirs], atol=1e-4 * np.abs(GOLDEN[theirs]).max())


def test_ways_of_writing_a_box_equal_torchvision_and_lead_back():
    for name in ("xywh", "cxcywh"):
        written = getattr(boxes, f"to_{name}")(A)
        np.testing.assert_allclose(written, GOLDEN[name], atol=1e-6)
        np.testing.assert_allclose(getattr(boxes, f"from_{name}")(written), A, atol=1e-6)
    np.testing.assert_array_equal(boxes.clip(GOLDEN["wild"], width=90, height=70), GOLDEN["clipped"])


def test_boxes_without_area_share_nothing_and_send_no_nan():
    point = jnp.array([0.3, 0.4, 0.3, 0.4])
    for measure in (boxes.iou, boxes.giou):
        value, grad = jax.value_and_grad(lambda x, measure=measure: measure(x, point))(point)
        assert value == 0
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_suppression_equals_a_plain_loop(threshold):
    many, scores, keep = jnp.array(GOLDEN["many"]), jnp.array(GOLDEN["scores"]), GOLDEN[f"keep_{threshold}"]
    assert 0 < keep.sum() < keep.size
    suppress = jax.jit(boxes.nms, static_argnums=2)
    np.testing.assert_array_equal(suppress(many, scores, threshold), keep)
    none = jnp.zeros((3, 4)).at[0].set(many[0])  # rows that hold no box neither stay nor suppress
    kept = suppress(jnp.concatenate([none, many]), jnp.r_[jnp.full(3, 2.0), scores], threshold, jnp.arange(28) >= 3)
    np.testing.assert_array_equal(kept, np.r_[np.zeros(3, bool), keep])


def test_what_is_no_box_is_masked_or_named():
    rows = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.2, 0.3, 0.4], [0.2, 0.5, 0.3, 0.4], [0.2, 0.2, 0.2, 0.2]])
    assert boxes.valid(rows).tolist() == boxes.valid(jnp.asarray(rows)).tolist() == [True, False, False, True]
    np.testing.assert_array_equal(boxes.check(rows[::3]), rows[::3])
    with pytest.raises(ValueError, match=r"boxes\[1\] \(0.5, 0.2, 0.3, 0.4\) is reversed.*from_xywh"):
        boxes.check(rows)
    with pytest.raises(ValueError, match=r"target \(0.1, 0.2, 3, 0.4\) is not within 1 x 1.*boxes.clip"):
        boxes.check([0.1, 0.2, 3, 0.4], "target")
    with pytest.raises(ValueError, match="is not finite"):
        boxes.check([0.1, 0.2, np.nan, 0.4])
    with pytest.raises(ValueError, match=r"\[\.\.\. 4\].*got \[2, 3\]"):
        boxes.check(np.zeros((2, 3)))
    assert boxes.check([3, 4, 50, 60], width=50, height=60).dtype == np.float64


def test_points_on_the_edge_belong_to_the_box():
    inside = boxes.contains(np.array([0.1, 0.2, 0.3, 0.4]), np.array([[0.1, 0.4], [0.2, 0.3], [0.31, 0.3], [0.2, 0.1]]))
    assert inside.tolist() == [True, True, False, False]
