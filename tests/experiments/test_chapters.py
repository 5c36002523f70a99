"""The runs of a chapter exist, in an order in which each finds what it starts from."""

import re
import runpy
import subprocess
from pathlib import Path

import pytest

from mmjax.train import overrides

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
MODULE = runpy.run_path(str(EXPERIMENTS / "_chapters.py"))
CHAPTERS, name_of = MODULE["CHAPTERS"], MODULE["name_of"]
AFTER = {"names": "pictures", "scenes_long": "scenes"}  # chapters that start from the runs of another


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_run_exists_and_comes_after_what_it_starts_from(chapter, monkeypatch):
    monkeypatch.chdir(EXPERIMENTS.parent)
    done = {name_of(run) for run in CHAPTERS[AFTER[chapter]]} if chapter in AFTER else set()
    for run in CHAPTERS[chapter]:
        if run[0].startswith("_"):  # a study; its docstring says which runs it reads
            about = (EXPERIMENTS / f"{run[0]}.py").read_text().split('"""')[1]
            needed = set(re.findall(r"\b(?:[a-z0-9]+_emoji|ladder_[a-z]+)\b", about))
            assert needed, run
            assert needed <= {name.split("-")[0] for name in done}, f"{run} reads {needed}"
            continue
        told = list(zip(run[1::2], run[2::2], strict=True))
        size, settings = dict(told).get("--size", "small"), [value for option, value in told if option == "--set"]
        experiment = overrides.load_experiment(EXPERIMENTS / f"{run[0]}.py", size, settings)
        for source in experiment.init_from:
            if not source.run.startswith("weights/"):
                assert {source.run, f"{source.run}-{size}"} & done, f"{run} starts from {source.run}"
        done.add(name_of(run))


def test_options_reach_each_run_and_the_first_failure_ends_it(monkeypatch, capsys):
    module = runpy.run_path(str(EXPERIMENTS / "_chapters.py"))
    started = []

    def run(command: list[str]) -> subprocess.CompletedProcess:
        started.append(command[1:])
        return subprocess.CompletedProcess(command, 3 if "experiments/bert_names.py" in command else 0)

    monkeypatch.setattr(subprocess, "run", run)
    assert module["main"]("bert", "--record") == 3
    assert [re.search(r"\w+(?=\.py)", " ".join(one))[0] for one in started] == ["bert_cldr", "bert_names"]
    assert all(one[-1] == "--record" and "--resume" in one for one in started)
    started.clear()
    assert module["main"]("ladder", "--record") == 0
    assert started[-1] == ["-m", "experiments._ladder", "--record"]
    assert module["main"]("nothing") == 2
    assert "no chapter 'nothing'; there are bert, " in capsys.readouterr().err


def test_runs_at_a_time_wait_for_what_they_start_from(monkeypatch, capsys):
    monkeypatch.chdir(EXPERIMENTS.parent)
    module = runpy.run_path(str(EXPERIMENTS / "_chapters.py"))
    events, polls = [], {}

    class Process:
        def __init__(self, words, name, cores):
            events.append(("start", name))
            self.name, self.returncode = name, None
            assert cores
            assert "--record" in words

        def poll(self):
            polls[self.name] = polls.get(self.name, 0) + 1
            if polls[self.name] == {"llama_sft-small": 3}.get(self.name, 1):
                self.returncode = 5 if self.name == failing else 0
                events.append(("end", self.name))
            return self.returncode

    monkeypatch.setitem(module["at_once"].__globals__, "started", Process)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    failing = None
    assert module["main"]("chat", "--jobs", "2", "--record") == 0
    assert len(events) == 12
    for name, needs in module["needs_of"](CHAPTERS["chat"]).items():
        assert all(events.index(("end", one)) < events.index(("start", name)) for one in needs), name
    running = 0
    for event, _ in events:
        running += 1 if event == "start" else -1
        assert running <= 2
    events.clear(), polls.clear()
    failing = "llama_sft-small"
    assert module["main"]("chat", "--jobs", "2", "--record") == 5
    assert [name for event, name in events if event == "start"] == ["llama_text-small", "llama_sft-small"]
    assert module["main"]("chat", "--jobs", "--record") == 2
    assert "--jobs takes how many runs" in capsys.readouterr().err
