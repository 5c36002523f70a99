"""The study that puts encoders side by side."""

import shutil

import jax
import numpy as np
import pytest

from experiments import _encoders, _study
from mmjax.evals.knn import KNN, Nearest
from mmjax.evals.probe import LinearProbe
from mmjax.evals.segmentation import Attention, PatchProbe


@pytest.mark.train
def test_it_measures_tiny_runs(encoder_runs, monkeypatch):
    few = {"split": "twemoji", "train": "validation"}  # a tenth of the drawings
    monkeypatch.setattr(_encoders, "WHOLE", (KNN(**few), LinearProbe(**few, steps=2), Nearest(**few)))
    monkeypatch.setattr(_encoders, "PLACES", (Attention("twemoji", count=8), PatchProbe("twemoji", count=8, steps=2)))
    found = _encoders.measure(encoder_runs, "tiny")
    whole = ("raw pixels", "untrained", "DINO", "DINOv2", "CLIP", "SigLIP")
    assert list(found) == [*whole, *(f"{name}, patches" for name in whole[1:5])]
    for row, result in found.items():
        numbers = {"twemoji/knn_subgroup_accuracy", "twemoji/probe_subgroup_accuracy", "twemoji/concept_R@1"}
        numbers |= {"twemoji/attention_iou", "twemoji/patch_iou"} if row in whole[1:5] else set()
        assert numbers <= result.metrics.keys(), row
    # Twelve steps of a tiny network move it, and the untrained one is where the run began.
    begun = _study.untrained(encoder_runs / "dino_emoji-tiny")
    ended = _study.load(encoder_runs / "dino_emoji-tiny")
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), begun.variables["teacher"], ended.variables["params"])
    assert 0 < max(jax.tree.leaves(moved)) < 0.1


@pytest.mark.train
def test_a_run_that_has_not_ended_is_refused(encoder_runs, tmp_path):
    folder = tmp_path / "dino_emoji-tiny"
    folder.symlink_to(encoder_runs / "dino_emoji-tiny")
    _study.load(folder)
    copy = tmp_path / "short" / "dino_emoji-tiny"
    shutil.copytree(encoder_runs / "dino_emoji-tiny", copy)
    last = max((copy / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(last)
    with pytest.raises(ValueError, match=r"has come to step 4 of 8; finish it first: mmjax train .*dino_emoji.py"):
        _study.load(copy)


def test_pixels_are_their_own_embedding():
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[1, 0, 1, 2] = 255
    embedding = _encoders.Pixels().apply({}, images, method="encode_image")
    assert embedding.shape == (2, 48)
    np.testing.assert_array_equal(np.flatnonzero(embedding[1] - embedding[0]), [5])
