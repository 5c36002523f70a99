"""What patches are asked: the loss told again in plain NumPy, and heads that stand beside a model."""

import jax
import numpy as np
import pytest

from mmjax.nn import cells


def plain(logits, found, labels, boxes) -> tuple[float, float, float]:
    """Cell by cell, in float64: names, L1, 1 - GIoU."""
    named, ground, l1, giou = [], [], [], []
    for b, i, j in np.ndindex(labels.shape):
        cell, label = i * labels.shape[2] + j, labels[b, i, j]
        scores = logits[b, cell].astype(np.float64)
        chance = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        if label == -1:
            ground.append(-np.log(chance[-1]))
            continue
        if label >= 0:
            named.append(-np.log(chance[label]))
        p, q = found[b, cell].astype(np.float64), boxes[b, i, j].astype(np.float64)
        l1.append(np.abs(p - q).mean())
        if p[0] > p[2] or p[1] > p[3]:
            continue
        area = lambda box: max(box[2] - box[0], 0) * max(box[3] - box[1], 0)  # noqa: E731
        shared = area([*np.maximum(p[:2], q[:2]), *np.minimum(p[2:], q[2:])])
        union, hull = area(p) + area(q) - shared, area([*np.minimum(p[:2], q[:2]), *np.maximum(p[2:], q[2:])])
        giou.append(1 - (shared / union - (hull - union) / hull))
    return np.mean(named) + 0.5 * np.mean(ground), np.mean(l1), np.mean(giou)


def example():
    rng = np.random.default_rng(0)
    labels = rng.integers(-2, 5, (2, 3, 3)).astype(np.int32)
    corners = np.sort(rng.uniform(size=(2, 3, 3, 2, 2)), axis=3)
    boxes = np.concatenate([corners[..., 0, :], corners[..., 1, :]], -1).astype(np.float32)
    return labels, boxes * (labels != -1)[..., None], rng


def test_the_loss_is_that_of_a_plain_account():
    labels, boxes, rng = example()
    assert {-2, -1, 0} <= set(labels.ravel().tolist())
    told = cells.Cells(*(rng.normal(size=(2, 9, n)).astype(np.float32) for n in (6, 4)))
    value, parts = cells.loss(told, labels, boxes)
    names, l1, giou = plain(told.logits, told.boxes, labels, boxes)
    np.testing.assert_allclose([parts["names"], parts["l1"], parts["giou"]], [names, l1, giou], rtol=1e-5)
    np.testing.assert_allclose(value, names + 2 * l1 + giou, rtol=1e-5)


def test_a_scene_without_things_and_reversed_boxes_give_finite_gradients():
    labels, boxes, rng = example()
    told = cells.Cells(*(rng.normal(size=(2, 9, n)).astype(np.float32) for n in (6, 4)))
    for of in (labels, np.full_like(labels, -1)):
        gradients = jax.grad(lambda told, of=of: cells.loss(told, of, boxes)[0])(told)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
    assert not np.any(gradients.boxes)


def test_a_patch_says_how_far_edges_are_from_its_own_centre():
    heads = cells.CellHeads(3)
    features = np.random.default_rng(1).normal(size=(1, 4, 5)).astype(np.float32)
    params = heads.init(jax.random.key(0), features)
    still = jax.tree.map(np.zeros_like, params)
    expected = np.array([[0.25, 0.25] * 2, [0.75, 0.25] * 2, [0.25, 0.75] * 2, [0.75, 0.75] * 2])  # x, y, row by row
    expected += [-cells.HALF, -cells.HALF, cells.HALF, cells.HALF]
    np.testing.assert_allclose(heads.apply(still, features).boxes[0], expected)
    with pytest.raises(ValueError, match="square grid, got 3 patches"):
        cells.centres(3)


def test_heads_beside_a_model_start_fresh_or_as_they_were():
    beside, given = cells.Beside(3, 5, weight=2.0), {}

    def init(model, rng, batch, loaded):
        given["loaded"] = loaded
        return {"params": {"vision": np.ones(2)}, "teacher": loaded.get("teacher")}

    fresh = beside.started(init)(None, jax.random.key(0), {}, {"teacher": 7})
    assert given["loaded"] == {"teacher": 7}
    assert fresh["params"]["cells"]["names"]["kernel"].shape == (5, 4)
    own = jax.tree.map(np.zeros_like, fresh["params"]["cells"])
    again = beside.started(init)(None, jax.random.key(0), {}, {"params": {"cells": own, "vision": 3}})
    assert again["params"]["cells"] is own
    assert given["loaded"] == {"params": {"vision": 3}}

    labels, boxes, rng = example()
    features = rng.normal(size=(2, 9, 5)).astype(np.float32)
    labels = np.minimum(labels, 2)
    total, aux = beside.added(1.5, {"text": 1.5}, fresh, features, {"cells": labels, "cell_boxes": boxes})
    told = cells.CellHeads(3).apply({"params": fresh["params"]["cells"]}, features)
    np.testing.assert_allclose(total, 1.5 + 2 * cells.loss(told, labels, boxes)[0], rtol=1e-6)
    assert set(aux.metrics) == {"text", "loss", "cell_names"}
