"""Checkpoints outside of the run folder, as on a pod whose hosts share a bucket."""

import numpy as np
import pytest
import toys

from mmjax.train import checkpoint, loop, trees


@pytest.fixture
def run(tmp_path):
    """A run of three steps whose checkpoints lie elsewhere: its experiment, its folder, their place."""
    elsewhere = tmp_path / "bucket"
    experiment = toys.experiment(checkpoints=str(elsewhere), steps=3)
    loop.train(experiment, tmp_path / "run")
    return experiment, tmp_path / "run", elsewhere


def test_they_are_found_again_from_the_run_folder(run):
    experiment, folder, elsewhere = run
    assert (elsewhere / "3" / "manifest.json").exists()
    assert not (folder / "checkpoints").exists()
    again = loop.train(experiment, folder, resume=True)
    served = checkpoint.load_variables(folder)
    for path, x in trees.leaves(served["params"]).items():
        np.testing.assert_array_equal(x, trees.leaves(again.state.variables["params"])[path])


def test_another_run_does_not_write_over_them(run, tmp_path):
    experiment, _, elsewhere = run
    before = (elsewhere / "3" / "manifest.json").read_bytes()
    with pytest.raises(FileExistsError, match="holds step 3 of another run already"):
        loop.train(experiment, tmp_path / "second")
    assert (elsewhere / "3" / "manifest.json").read_bytes() == before
    assert not (tmp_path / "second").exists()
