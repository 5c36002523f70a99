"""The ladder's runs at their tiny size, what differs between them, and the study of them."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import _ladder
from mmjax.train import loop, overrides, run_folder

FILES = {stem: Path(f"experiments/{stem}.py") for stem in ("ladder_images", "ladder_captions")}


def test_runs_differ_in_one_thing_each():
    def made(end: str, stem: str = "ladder_images"):
        return overrides.load_experiment(FILES[stem], f"small{end}")

    base = made("")
    shares = [made(end).data.share for end in ("_16th", "_quarter", "")]
    assert shares == [1 / 16, 1 / 4, 1]
    assert shares == [made(end, "ladder_captions").data.share for end in ("_16th", "_quarter", "")]
    for end in ("_xs", "_s", "_l", "_16th", "_quarter", "_1task", "_3tasks"):
        other = made(end)
        size, data = other.task.model.config.vision, other.data
        tasks = other.task.model.config.image_weight, other.task.loss.__name__
        known = base.task.model.config.vision, base.data, (1.0, "loss")
        assert [a == b for a, b in zip((size, data, tasks), known, strict=True)].count(False) == 1, end
        assert (other.steps, other.batch_size, other.optimizer) == (base.steps, base.batch_size, base.optimizer)
    widths = [made(end).task.model.config.vision.width for end in ("_xs", "_s", "", "_l")]
    assert widths == sorted(set(widths))
    assert widths == [made(end, "ladder_captions").task.model.config.width for end in ("_xs", "_s", "", "_l")]
    for wrong in ("small_", "small_huge", "middle"):
        with pytest.raises(ValueError, match=wrong):
            overrides.load_experiment(FILES["ladder_images"], wrong)


def test_a_picture_is_turned_by_quarters():
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
    quarters = np.array([0, 1, 2, 3, 1])
    turned = runpy.run_path(str(FILES["ladder_images"]))["turned"]
    found = turned(images, quarters)
    for image, count, one in zip(images, quarters, found, strict=True):
        np.testing.assert_array_equal(one, np.rot90(image, count))


def test_a_rise_is_the_mean_correlation_of_ranks_and_its_share_of_all_orders():
    up, down = np.array([0.1, 0.2, 0.5, 0.7]), np.array([9.0, 8.0, 2.0, 1.0])
    assert _ladder.rise(np.stack([up, up**3], 1)) == pytest.approx((1, 1 / 24))
    assert _ladder.rise(np.stack([down, down], 1)) == pytest.approx((-1, 1))
    assert _ladder.rise(np.stack([up, down], 1)) == pytest.approx((0, 1))  # every order is as good
    assert _ladder.rise(np.stack([up[[0, 2, 1, 3]]], 1)) == pytest.approx((0.8, 4 / 24))
    assert _ladder.rise(np.stack([up, np.ones(4)], 1))[0] == pytest.approx(0.5)


@pytest.mark.slow
def test_the_study_reads_its_runs_and_says_its_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_ladder, "PERMUTATIONS", dict.fromkeys(_ladder.METRICS, 9))
    ends = {"ladder_images": ("_xs", "", "_3tasks"), "ladder_captions": ("_xs", "")}
    for stem, sizes in ends.items():
        for end in sizes:
            recipe = run_folder.Recipe(FILES[stem], f"tiny{end}")
            experiment = recipe.build()
            mesh = experiment.mesh.build(jax.devices()[:1])
            outcome = loop.train(experiment, tmp_path / f"{stem}-tiny{end}", recipe=recipe, mesh=mesh)
            assert all(np.isfinite(value) for value in outcome.metrics.values())
    axes = {
        "size": _ladder.Axis(("_xs", ""), ("_xs", ""), (32, 128), "width"),
        "tasks": _ladder.Axis(("", "_3tasks"), ("",), (1, 3), "tasks"),
    }
    found = _ladder.measure(tmp_path, "tiny", axes)
    assert list(found) == ["xs", "m", "3tasks", "size", "tasks"]
    numbers = found["xs"].metrics
    assert numbers["mutual_knn_chance"] == pytest.approx(10 / 1554, rel=0.5)
    assert numbers["held_out_concepts/mutual_knn_chance"] == pytest.approx(10 / 159, rel=0.5)
    assert numbers["mutual_knn_low"] < numbers["mutual_knn"] < numbers["mutual_knn_high"]
    assert found["3tasks"].metrics["untrained/mutual_knn"] == found["m"].metrics["untrained/mutual_knn"]
    rises = {name for name in found["size"].metrics if name.endswith("_rise_with_captions")}
    assert rises == {f"{a}{b}_rise_with_captions" for a in ("", "untrained/", "gained/") for b in _ladder.METRICS}
    assert found["tasks"].metrics["images_3tasks-captions_m/mutual_knn"] == found["3tasks"].metrics["mutual_knn"]
    assert "captions xs" in capsys.readouterr().out
    assert all(picture.dtype == np.uint8 for one in found.values() for picture in one.pictures.values())
    with pytest.raises(FileNotFoundError, match="mmjax train experiments/ladder_images.py --size small_xs"):
        _ladder.measure(tmp_path, "small", axes)
