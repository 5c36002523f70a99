"""Every command does its work at toy size, and a mistake is one sentence with exit code 2."""

import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmjax import cli

ROOT = Path(__file__).parent.parent
TOY = '''"""Points on a line, learned by a line.

Nothing else."""
import dataclasses
import time
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
from mmjax.data import pipeline
from mmjax.nn.outputs import Answer, Aux, Result
from mmjax.train.experiment import Experiment
from mmjax.train.optim import AdamW
from mmjax.train.task import Task

@dataclasses.dataclass(frozen=True)
class Points:
    slope: float = 2.0
    nap: float = 0.0  # seconds that a batch takes
    def batches(self, batch_size, seed, rows=pipeline.ALL):
        x = np.linspace(-1, 1, 64, dtype=np.float32)[:, None]
        def make(indices, rng, rows):
            time.sleep(self.nap)
            return {"x": x[indices][rows], "y": self.slope * x[indices][rows]}
        return pipeline.Batches(64, batch_size, seed, rows, make)

def loss(model, variables, batch, rng, step):
    error = jnp.mean((model.apply(variables, batch["x"]) - batch["y"]) ** 2)
    return error, Aux({}, weight=jnp.float32(len(batch["x"])))

class Line(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="down")(x)

def slope(model, variables, data, rng):
    return Result({"slope": float(variables["params"]["down"]["kernel"][0, 0]), "true_slope": data.slope})

def sample(model, variables, request, data, rng):
    values = [model.apply(variables, jnp.array([[float(text)]])).item() for text in request.texts]
    picture = np.full((4, 4, 3), 7, np.uint8)
    return Answer(f"{values[0]:.5f} and {len(request.images)} images", {"line": picture})

def experiment(size):
    steps = {"tiny": 4, "small": 400}[size]
    return Experiment(Task(Line(), loss), Points(), AdamW(0.1), steps=steps, batch_size=16, evals=(slope,),
                      sample=sample, save_every=2, eval_every=2, log_every=1)
'''


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one experiment in it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "toy_points.py").write_text(TOY)
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.delenv("MMJAX_DEBUG", raising=False)
    return place


@pytest.fixture(scope="module")
def run(place):
    """The folder of a finished run."""
    before = Path.cwd()
    os.chdir(place)
    try:
        assert cli.main(["train", "experiments/toy_points.py", "--size", "tiny", "--record"]) == 0
    finally:
        os.chdir(before)
    return place / "runs" / "toy_points-tiny"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def error_of(arguments, capsys, code=cli.MISTAKE):
    """What a failing command writes to stderr."""
    capsys.readouterr()
    assert cli.main(arguments) == code
    return capsys.readouterr().err


def test_train_fills_the_run_folder_and_records_one_line(run):
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert (run / "report.html").is_file()
    assert (run / "toy_points.py").read_text() == TOY
    (record,) = lines(run.parent.parent / "experiments" / "results.jsonl")
    assert (record["stem"], record["size"], record["metrics"]["true_slope"]) == ("toy_points", "tiny", 2.0)


def test_set_reaches_inner_fields_and_workdir_is_taken(here, capsys):
    arguments = ["train", "experiments/toy_points.py", "--size", "tiny", "--workdir", "elsewhere"]
    assert cli.main([*arguments, "--set", "data.slope=-3", "--set", "steps=2"]) == 0
    assert lines(here / "elsewhere" / "evals.jsonl")[-1]["true_slope"] == -3
    assert [line["step"] for line in lines(here / "elsewhere" / "metrics.jsonl")] == [1, 2]


def test_eval_prints_the_numbers_of_the_run(run, capsys):
    assert cli.main(["eval", str(run)]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert float(shown["slope"]) == pytest.approx(lines(run / "evals.jsonl")[-1]["slope"], rel=1e-3)


def test_sample_answers_from_the_trained_parameters_and_writes_its_pictures(run, tmp_path, capsys):
    Image.new("RGB", (3, 5)).save(tmp_path / "a.png")
    assert cli.main(["sample", str(run), "1", "--image", str(tmp_path / "a.png")]) == 0
    out = capsys.readouterr().out
    slope = lines(run / "evals.jsonl")[-1]["slope"]
    assert float(out.split()[0]) != 0
    assert abs(float(out.split()[0]) - slope) < 0.5  # the bias has hardly moved in four steps
    assert "and 1 images" in out
    assert np.asarray(Image.open(run / "samples" / "line.png")).tolist() == np.full((4, 4, 3), 7).tolist()


def test_list_shows_files_first_lines_and_sizes(here, capsys):
    assert cli.main(["list"]) == 0
    assert (
        capsys.readouterr().out
        == "experiments/toy_points.py  [tiny, small]\n    Points on a line, learned by a line.\n"
    )


def test_resume_of_a_finished_run_changes_nothing(run, here):
    before = (run / "metrics.jsonl").read_bytes()
    assert cli.main(["train", "experiments/toy_points.py", "--size", "tiny", "--resume"]) == 0
    assert (run / "metrics.jsonl").read_bytes() == before


TRAIN = ["train", "experiments/toy_points.py", "--size", "tiny", "--workdir", "unused"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "experiments/toy_point.py"], ["no experiment file", "did you mean experiments/toy_points.py?"]),
        ([*TRAIN[:2], "--size", "huge"], ["has no size 'huge'", "tiny, small"]),
        ([*TRAIN, "--set", "optimiser.peak=1"], ["no field 'optimiser'", "did you mean optimizer?"]),
        ([*TRAIN, "--set", "data.slop=1"], ["data has no field 'slop'", "did you mean slope?"]),
        ([*TRAIN, "--set", "steps"], ["FIELD=VALUE"]),
        ([*TRAIN, "--set", "batch_size=12"], ["batch_size 12", "8 batch shards", "multiple of 8"]),
        ([*TRAIN, "--set", "mesh.fsdp=3"], ["fsdp=3", "found 8"]),
        ([*TRAIN, "--coordinator", "somewhere:1"], ["--num-processes", "--process-id"]),
        (["eval", "nowhere"], ["nowhere is no run folder"]),
        (["sample", "nowhere", "text"], ["nowhere is no run folder"]),
        (["sample"], ["needs a run folder"]),
        (["sample", "--weights", "nowhere", "a"], ["nowhere is no folder"]),
        (["sample", "--weights", "nowhere"], ["give some text"]),
        (["sample", "nowhere", "a", "--image", "no.png"], ["no.png: No such file"]),
        (["sample", "nowhere", "a", "--image", "experiments/toy_points.py"], ["toy_points.py is not an image"]),
        (["plan", *TRAIN[1:4], "--topology", "v5e:16"], ["unknown topology 'v5e:16'", "v5e:16x16"]),
        (["convert", "nowhere", "out"], ["nowhere does not exist"]),
        (["list", "nowhere"], ["no experiments in nowhere"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(arguments, parts, here, capsys):
    error = error_of(arguments, capsys)
    assert error.startswith("mmjax: error: ")
    assert error.count("\n") == 1
    for part in parts:
        assert part in error
    assert not (here / "unused").exists()


def test_a_run_folder_in_use_is_kept(run, here, capsys):
    before = (run / "config.json").read_bytes()
    assert "holds a run already: pass --resume" in error_of(
        ["train", "experiments/toy_points.py", "--size", "tiny"], capsys
    )
    assert (run / "config.json").read_bytes() == before


def test_debug_shows_where_a_mistake_was_noticed(here, capsys, monkeypatch):
    monkeypatch.setenv("MMJAX_DEBUG", "1")
    assert "Traceback" in error_of(["train", "experiments/none.py"], capsys)


@pytest.mark.parametrize(
    ("code", "words"), [("np.zeros(3).reshape(2)", "cannot reshape"), ("{}['key']", "KeyError: 'key'")]
)
def test_a_fault_keeps_its_traceback_and_is_no_mistake(code, words, here, capsys):
    (here / "faulty.py").write_text(TOY.replace('    steps = {"tiny"', f'    {code}\n    steps = {{"tiny"'))
    error = error_of(["train", "faulty.py", "--workdir", "unused"], capsys, code=1)
    assert "Traceback" in error
    assert words in error


def test_an_experiments_own_complaint_is_a_mistake(here, capsys):
    (here / "picky.py").write_text(
        TOY.replace("    steps = {", '    raise ValueError("set the path first")\n    steps = {')
    )
    assert error_of(["train", "picky.py", "--workdir", "unused"], capsys) == "mmjax: error: set the path first\n"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP with a vocabulary of bytes, as a Hugging Face folder; and the model and variables in it."""
    import jax
    import jax.numpy as jnp

    from mmjax import weights
    from mmjax.models import clip
    from mmjax.text import clip_bpe

    folder = tmp_path_factory.mktemp("clip")
    vocabulary, _ = clip_bpe._from_lines([])
    tiny = clip.CLIPConfig.tiny()
    text = dataclasses.replace(tiny.text, vocab_size=len(vocabulary), eos_id=vocabulary[clip_bpe.END])
    model = clip.CLIP(dataclasses.replace(tiny, text=text))
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 16), int))
    weights.save_hf(folder, model, variables)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder, model, variables


def test_sample_with_weights_gives_the_probabilities_of_the_texts(clip_folder, tmp_path, capsys):
    folder, model, variables = clip_folder
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    texts = ["ab", "c", "dd"]
    assert cli.main(["sample", "--weights", str(folder), "--image", str(tmp_path / "noise.png"), *texts]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]

    vocabulary = json.loads((folder / "vocab.json").read_text())
    ids = np.full((3, 16), vocabulary["<|endoftext|>"])
    for row, symbols in zip(ids, [["a", "b</w>"], ["c</w>"], ["d", "d</w>"]], strict=True):
        row[: len(symbols) + 1] = [vocabulary["<|startoftext|>"], *(vocabulary[symbol] for symbol in symbols)]
    images = (pixels[None] / np.float32(255) - 0.5) / 0.5
    logits = np.asarray(model.apply(variables, images.astype(np.float32), ids).logits_per_image)[0]
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [text for _, text in shown] == [texts[best] for best in np.argsort(-expected)]
    for percent, text in shown:
        assert float(percent.rstrip("%")) / 100 == pytest.approx(expected[texts.index(text)], abs=2e-3)


def test_convert_writes_the_other_format_and_back_bit_for_bit(clip_folder, tmp_path):
    source = clip_folder[0]
    assert cli.main(["convert", str(source), str(tmp_path / "there"), "--to", "open_clip"]) == 0
    assert (tmp_path / "there" / "open_clip_model.safetensors").is_file()
    assert cli.main(["convert", str(tmp_path / "there"), str(tmp_path / "back")]) == 0
    weights = "model.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (source / weights).read_bytes()


def command(*arguments, cwd=None, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "mmjax", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_help_teaches_and_loads_nothing_heavy():
    code = (
        "import sys; from mmjax import cli; text = cli.parser().format_help(); "
        "assert not {'jax', 'numpy', 'PIL', 'rich'} & set(sys.modules), sorted(sys.modules); print(text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "mmjax train experiments/clip_emoji.py" in done.stdout


@pytest.mark.parametrize("name", ["train", "eval", "sample", "align", "plan", "convert", "list"])
def test_every_command_has_an_example_that_parses(name):
    import shlex

    command_parser = cli.parser()._subparsers._group_actions[0].choices[name]
    examples = [line.strip().rstrip("&") for line in command_parser.epilog.splitlines()[1:]]
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert words[0] == "mmjax"
        assert cli.parse(words[1:]).command == name


def test_texts_after_an_option_are_texts_and_unknown_options_are_not(capsys):
    assert cli.parse(["sample", "run", "one", "--image", "a.png", "two", "three"]).words == [
        "run",
        "one",
        "two",
        "three",
    ]
    for words in (["sample", "run", "--imgae", "a.png"], ["list", "experiments", "more"]):
        with pytest.raises(SystemExit) as ended:
            cli.parse(words)
        assert ended.value.code == cli.MISTAKE


def test_the_module_runs_as_a_process(place):
    out, err = command("list", cwd=place).communicate(timeout=120)
    assert "toy_points.py" in out, err


def test_what_plan_compiles_is_what_train_runs(here):
    import jax

    from mmjax.train import overrides, step

    experiment = overrides.load_experiment("experiments/toy_points.py", "tiny")
    runner = step.build(experiment, experiment.mesh.build())
    batch = runner.place(experiment.data.batches(16, 0)[0])
    state = runner.init(batch)
    with jax.set_mesh(runner.mesh):
        runs = runner.update.trace(state, batch, step.key(0, "step"))
    assert str(runner.trace().jaxpr) == str(runs.jaxpr)
    runner.run(state, batch)
    assert runner.update._cache_size() == 1


@pytest.mark.aot
def test_plan_says_that_a_toy_fits(here, capsys):
    pytest.importorskip("libtpu")
    assert cli.main(["plan", "experiments/toy_points.py", "--size", "tiny", "--topology", "v5e:2x2"]) == 0
    out = capsys.readouterr().out
    assert "data 4" in out
    assert "fits" in out


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.multiprocess
def test_an_unreachable_coordinator_ends_with_one_sentence(place):
    asked = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2, "--process-id", 1, "--start-timeout", 2)
    process = command("train", "experiments/toy_points.py", "--size", "tiny", *asked, cwd=place)
    _, error = process.communicate(timeout=120)
    assert process.returncode == cli.MISTAKE
    assert "mmjax: error: process 1 on" in error
    assert "cannot reach the coordinator 127.0.0.1:" in error


@pytest.mark.multiprocess
def test_a_late_process_is_named_by_process_0(place):
    asked = ("--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2, "--process-id", 0, "--start-timeout", 2)
    process = command("train", "experiments/toy_points.py", "--size", "tiny", *asked, cwd=place)
    _, error = process.communicate(timeout=120)
    assert process.returncode == cli.MISTAKE
    assert "mmjax: error: after 2 s still missing: process 1; present: process 0 on" in error


def pair(place, workdir, *arguments):
    """Two processes of one run."""
    address = f"127.0.0.1:{free_port()}"
    return [
        command(
            "train", "experiments/toy_points.py", "--size", "tiny", "--workdir", workdir, *arguments,
            "--coordinator", address, "--num-processes", 2, "--process-id", index, "--heartbeat", 10, cwd=place,
        )
        for index in (0, 1)
    ]  # fmt: skip


@pytest.mark.multiprocess
def test_two_processes_train_what_one_trains(place, run):
    both = pair(place, "both")
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    alone, together = (lines(folder / "metrics.jsonl") for folder in (run, place / "both"))
    assert [line["step"] for line in together] == [1, 2, 3, 4]
    for one, two in zip(alone, together, strict=True):
        assert math.isclose(one["loss"], two["loss"], rel_tol=1e-5)


@pytest.mark.multiprocess
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_and_the_checkpoint_goes_on(place, victim):
    workdir, settings = f"killed-{victim}", ("--set", "steps=100000", "--set", "data.nap=0.02")
    both = pair(place, workdir, *settings)
    manifests = lambda: sorted((place / workdir / "checkpoints").glob("*/manifest.json"))  # noqa: E731
    deadline = time.monotonic() + 40
    while not manifests() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert manifests(), [process.communicate(timeout=5) for process in both]
    both[victim].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _, error = both[1 - victim].communicate(timeout=50)
    assert both[1 - victim].returncode != 0, error
    assert time.monotonic() - killed < 40
    both[victim].communicate(timeout=5)

    from mmjax.train import checkpoint

    step = checkpoint.Checkpoints(place / workdir / "checkpoints").find()
    assert step is not None
    variables = checkpoint.load_variables(place / workdir)
    assert np.isfinite(variables["params"]["down"]["kernel"]).all()
