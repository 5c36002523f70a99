"""Judges train at `tiny`, and the committed ones put what must score badly in order."""

import dataclasses
import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import _export_judges, _judges, _study
from mmjax.evals import judges
from mmjax.train import loop, run_folder

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.slow
def test_judges_train_and_are_written_down(tmp_path, monkeypatch):
    for stem in ("judge_a", "judge_b"):
        recipe = run_folder.Recipe(EXPERIMENTS / f"{stem}.py", "tiny")
        experiment = dataclasses.replace(recipe.build(), evals=(), final_evals=())  # which take longer than training
        loop.train(experiment, tmp_path / f"{stem}-small", recipe=recipe, mesh=experiment.mesh.build(jax.devices()[:1]))
    monkeypatch.setattr(judges, "ASSETS", tmp_path / "assets")
    _export_judges.main([str(tmp_path / f"{stem}-small") for stem in ("judge_a", "judge_b")])
    model = _study.load(tmp_path / "judge_a-small").model
    assert judges.load(tmp_path / "assets" / "judge_a.safetensors", model).model == model
    with pytest.raises(ValueError, match="another shape"):
        judges.load(tmp_path / "assets" / "judge_b.safetensors", model)


def test_the_committed_judges_are_small_and_those_of_the_recorded_table():
    for judge in judges.committed():
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(judge.variables))
    for name, judge in zip(("judge_a", "judge_b"), judges.committed(), strict=True):
        data = (judges.ASSETS / f"{name}.safetensors").read_bytes()
        assert len(data) <= 2 * 2**20
        assert hashlib.sha256(data).hexdigest() == judge.sha256
    lines = [json.loads(line) for line in (EXPERIMENTS / "results.jsonl").read_text().splitlines()]
    recorded = [line for line in lines if line["stem"] == "judges"]
    assert recorded[-1]["judge"] == judges.sha256s()


def in_order(*values):
    return all(a < b for a, b in zip(values, values[1:], strict=False))


@pytest.mark.slow  # two CPU minutes
def test_both_judges_put_the_controls_in_order():
    rows = {name: one.metrics for name, one in _judges.measure(Path("runs"), "small").items()}
    bad = ("patches of others", "mean of the subgroup", "only noise")
    for judge in "ab":
        for metric in ("frechet", "kernel"):
            by = {name: row[f"{metric}_{judge}"] for name, row in rows.items()}
            assert in_order(by["real"], by["blurred once"], by["blurred 3 times"], by["blurred 8 times"])
            assert in_order(by["real"], by["noise of .15"], by["only noise"])
            assert by["noise of .05"] < by["noise of .15"]  # so little is hardly seen
            assert all(by[name] > by["blurred 3 times"] for name in bad)
            assert by["one for each subgroup"] > 2 * by["real"]
            assert by["labels of others"] == pytest.approx(by["real"], abs=1e-6)  # which distances cannot see
        coverage, recall = ({n: row[f"{m}_{judge}"] for n, row in rows.items()} for m in ("coverage", "recall"))
        assert all(coverage[name] < 0.6 * coverage["real"] for name in (*bad, "one for each subgroup"))
        assert recall["one for each subgroup"] < 0.3 * recall["real"]
        names = {n: row[f"name_R@10_{judge}"] for n, row in rows.items()}
        assert names["labels of others"] < 0.1 < 0.5 * names["real"]
    accuracy, copies = ({n: row[m] for n, row in rows.items()} for m in ("group_accuracy", "copies"))
    assert accuracy["labels of others"] < 0.5 * accuracy["real"]
    assert accuracy["one for each subgroup"] > 0.8 * accuracy["real"]
    assert copies["real"] == copies["labels of others"] == 1
    assert max(copies[name] for name in (*bad, "an artist never seen")) < 0.1
