"""Notebooks run from top to bottom, and what is committed is the output of a real run.

MMJAX_NOTEBOOK_SIZE says the size of the runs that a notebook looks at ("small" where it isn't set), in `runs/` beside
the folder `notebooks/`. To make outputs anew: `mmjax train experiments/clip_emoji.py`, then, with the extra [docs],
`jupyter execute --inplace notebooks/01_clip.ipynb`.
"""

import contextlib
import json
import os
import re
from pathlib import Path

import pytest

from mmjax.train import loop, overrides, run_folder

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUNS = {
    "01_clip": ("clip_emoji",),
    "02_transformers": (),
    "03_llm_training": (),
    "04_mamba": (),
    "05_dino": ("dino_emoji", "dinov2_emoji"),
    "06_eyes_wide_shut": ("clip_emoji", "dinov2_emoji"),
    "07_platonic": (),
    "08_llava": ("llava_scenes-small_long", "llama_scenes-small_twin"),
    "09_qformer": ("qformer_scenes",),
}  # notebook -> the runs that it looks at: experiments, and a size where it is not "small"


def code_cells(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_is_known():
    assert {path.stem for path in NOTEBOOKS} == set(RUNS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_outputs_are_whole_and_of_this_run_only(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert sum("image/jpeg" in output.get("data", ()) for output in outputs) >= 5
    assert path.stat().st_size < 1_000_000
    text = "".join("".join(output.get("text", ())) for output in outputs)
    assert len(text) > 500
    assert not re.search(r"(^|[\s'\"(])/(home|root|work|tmp|usr|Users)/", text), "an absolute path"
    assert "Warning" not in text
    for stem in RUNS[path.stem]:
        stem, _, size = stem.partition("-")
        small = run_folder.Recipe(ROOT / "experiments" / f"{stem}.py", size or "small").build()
        assert f"{small.steps:,} steps of {small.batch_size}" in text, "not a run of the experiment as it is now"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with `notebooks/` and the tiny runs beside it, as in a clone."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "notebooks").mkdir()
    with contextlib.chdir(folder):  # where runs find those that they start from
        for run in sorted(set().union(*RUNS.values())):
            train(run)
    return folder


def train(run):
    """The tiny run that stands for this one, after those that it starts from."""
    stem, _, size = run.partition("-")
    file, size = ROOT / "experiments" / f"{stem}.py", size.replace("small", "tiny")
    size = size if size in overrides.sizes(file) else "tiny"
    recipe, folder = run_folder.Recipe(file, size), Path("runs") / f"{stem}-{size}"
    experiment = recipe.build()
    if not folder.exists():
        for source in experiment.init_from:
            train(source.run)
        loop.train(experiment, folder, recipe=recipe)


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, trained, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("MMJAX_NOTEBOOK_SIZE", "tiny")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    where = {"metadata": {"path": str(trained / "notebooks")}}
    nbclient.NotebookClient(notebook, timeout=280, kernel_name="python3", resources=where).execute()
    ran = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert ran == list(range(1, len(code_cells(path)) + 1))
