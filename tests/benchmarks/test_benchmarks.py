"""The benchmarks run and count right. What they measure is not tested."""

import argparse
import os
import subprocess
import sys
import types
from pathlib import Path

import dino_names
import ferret_names
import numpy as np
import pytest

from mmjax.benchmarks import __main__ as benchmarks
from mmjax.benchmarks import clip, dino, ferret, paired

GOLDENS = Path(__file__).parents[1] / "goldens"


def test_turns_are_a_b_b_a_and_the_ratio_is_of_pairs(monkeypatch):
    clock, order = [0.0], []

    def program(name, takes):
        def run():
            order.append(name)
            clock[0] += takes * (1 + clock[0] / 1000)  # the machine slows down

        return run

    monkeypatch.setattr(paired.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(paired.time, "process_time", lambda: clock[0] * 2)  # two cores
    result = paired.measure(program("a", 1.0), program("b", 3.0), pairs=4)
    assert "".join(order) == "abbaabba"
    median, low, high = paired.times_faster(result.first, result.second)
    assert low <= median <= high
    assert median == pytest.approx(3.0, abs=0.02)
    np.testing.assert_allclose(result.second_cpu, 2 * result.second)
    np.testing.assert_allclose(result.first_cpu, 2 * result.first)


def test_pairs_must_be_even():
    with pytest.raises(ValueError, match="pairs must be even and at least 2, as A B B A holds two of them, got 3"):
        paired.measure(lambda: None, lambda: None, pairs=3)


def test_without_pytorch_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    clip._compare(None, [], argparse.Namespace())
    assert "pip install mmjax[parity]" in capsys.readouterr().out


def test_without_pytorch_llava_says_what_to_install_too(monkeypatch, capsys):
    from mmjax.benchmarks import llava

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "argv", ["llava", "--size=tiny"])
    monkeypatch.setattr(llava.os, "sched_setaffinity", lambda *_: None)
    llava.main()
    assert "pip install mmjax[parity]" in capsys.readouterr().out


def test_an_unknown_name_lists_the_known(capsys):
    assert benchmarks.main(["clap"]) == 2
    out = capsys.readouterr().out
    assert all(name in out for name in benchmarks.BENCHMARKS)


@pytest.mark.parity
def test_both_sides_compute_the_same_loss_and_are_timed():
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "mmjax.benchmarks", "clip", "--size=tiny", "--pairs=2", "--no-compile"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "PyTorch eager, without" in out  # printed only where the losses were equal
    assert "pipeline alone" in out


def test_dinos_parameters_get_the_names_and_shapes_of_the_original():
    golden = np.load(GOLDENS / "dino.npz")  # of facebookresearch/dino's own network
    flat = {name.removeprefix("before/"): golden[name] for name in golden if name.startswith("before/")}
    ours = dino.original_names({"backbone": dino_names.backbone(flat), "head": dino_names.head(flat)})
    assert set(ours) == set(flat)
    for name in ours:
        np.testing.assert_array_equal(ours[name], flat[name], err_msg=name)


def test_without_the_original_it_says_what_to_clone(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert dino._rival(None, None, None, []) is None
    (tmp_path / "utils.py").touch()
    assert dino._rival(tmp_path, None, None, []) is None
    first, second = capsys.readouterr().out.splitlines()
    assert "no main_dino.py, utils.py, vision_transformer.py in the checkout" in first
    assert f"no main_dino.py, vision_transformer.py in {tmp_path}; it needs `git clone" in second


@pytest.mark.parity
@pytest.mark.skipif("DINO_CHECKOUT" not in os.environ, reason="DINO_CHECKOUT names no clone of facebookresearch/dino")
def test_dino_does_the_same_as_the_original_and_is_timed():
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "mmjax.benchmarks", "dino", "--size=tiny", "--pairs=2"]
    command.append(f"--checkout={os.environ['DINO_CHECKOUT']}")
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "DINO   " in out  # printed only where the losses of several updates were equal


def test_ferrets_parameters_get_the_names_and_shapes_of_the_original():
    golden = np.load(GOLDENS / "ferret.npz")  # of apple/ml-ferret's own class
    flat = {name.removeprefix("max/weights/"): golden[name] for name in golden if name.startswith("max/weights/")}
    ours = ferret.original_names(ferret_names.sampler(flat))
    assert set(ours) == set(flat)
    for name in ours:
        np.testing.assert_array_equal(ours[name], flat[name], err_msg=name)


def test_without_the_authors_sampler_it_says_what_to_clone(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    with pytest.raises(FileNotFoundError, match="no ferret/model/ferret_arch.py in .*; it needs `git clone"):
        ferret.WAYS["the authors' in PyTorch"](argparse.Namespace(checkout=tmp_path))


@pytest.mark.parity
@pytest.mark.skipif("FERRET_CHECKOUT" not in os.environ, reason="FERRET_CHECKOUT names no clone of apple/ml-ferret")
def test_ferrets_sampler_races_its_authors_with_the_same_regions_and_gradients():
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "mmjax.benchmarks", "ferret", "--width=16", "--out=24", "--regions=2", "--pairs=2"]
    command.append(f"--checkout={os.environ['FERRET_CHECKOUT']}")
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "pair by pair in JAX  " in out  # printed only where regions and gradients were equal
    assert "the authors' in PyTorch  " in out


@pytest.mark.parity
def test_language_models_do_the_same_on_both_sides_and_are_timed():
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "mmjax.benchmarks", "language", "--only=llama", "--pairs=2"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "llama, train" in out  # printed only where losses, and where tokens were equal
    assert "llama, decode" in out


@pytest.mark.parity
def test_llava_does_the_same_on_both_sides_in_both_stages_and_is_timed():
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "mmjax.benchmarks", "llava", "--size=tiny", "--pairs=2"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "stage 1 " in out  # printed only where the losses were equal
    assert "stage 2 " in out


@pytest.mark.parity
def test_mamba_races_the_originals_with_the_same_logits():
    pytest.importorskip("torch")
    command = [sys.executable, "-m", "mmjax.benchmarks", "mamba", "--only=race", "--pairs=2"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "mamba against transformers" in out  # printed only where the logits were equal
    assert "mamba2 against transformers" in out


@pytest.mark.slow
def test_mamba_grows_with_the_text_and_attention_with_its_square(tmp_path, capsys, monkeypatch):
    from mmjax.benchmarks import mamba

    monkeypatch.setattr(mamba, "SHORTEST", 256)
    monkeypatch.setattr(mamba, "WIDTH", 64)
    monkeypatch.setattr(mamba, "DEPTH", 1)
    mamba._lengths(argparse.Namespace(longest=1024, plot=tmp_path / "plot.png"))
    # The last line: for each model, how much seconds and megabytes grew with the last doubling.
    ratios = np.array(capsys.readouterr().out.split("\n")[-2].split(), float).reshape(3, 2)
    memory = dict(zip(("mamba", "mamba2", "llama"), ratios[:, 1], strict=True))
    assert memory["mamba"] < 2.2
    assert memory["mamba2"] < 2.2
    assert memory["llama"] > 3
    assert (tmp_path / "plot.png").stat().st_size > 5000


@pytest.mark.parametrize("torch", [False, pytest.param(True, marks=pytest.mark.parity)])
def test_neighbours_in_blocks_race_all_of_them_with_the_same_score(torch, monkeypatch, capsys):
    from mmjax.benchmarks import platonic

    if torch:
        pytest.importorskip("torch")
    else:
        monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(sys, "argv", ["platonic", "--rows=200", "--width=16", "--pairs=2"])
    monkeypatch.setattr(platonic.os, "sched_setaffinity", lambda *_: None)
    platonic.main()
    out = capsys.readouterr().out
    assert "\nblocks " in out
    assert "\nN x N in JAX " in out  # printed only where the scores were equal
    assert ("\nN x N in PyTorch not run: " in out) != torch


def test_memory_of_all_pairs_is_seen():
    from mmjax.benchmarks import platonic

    if not platonic.CLEAR.exists():
        pytest.skip("needs Linux")
    # In a process of its own: memory that earlier tests gave back would be taken first.
    code = "import numpy as np; from mmjax.benchmarks import platonic as p; "
    code += "print(p._peak(lambda: np.ones((5000, 5000), np.float32).sum()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 90 < float(done.stdout) < 200
