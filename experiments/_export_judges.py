"""Writes the weights of trained judges to mmjax/evals/assets: python -m experiments._export_judges RUN ...

A RUN is a folder such as runs/judge_a-small, made by `mmjax train experiments/judge_a.py`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments import _study
from mmjax.evals import judges


def main(runs: Sequence[str]) -> None:
    if not runs:
        raise ValueError("name the runs whose weights are to be written: runs/judge_a-small runs/judge_b-small")
    for run in runs:
        trained, name = _study.load(run), Path(run).name.partition("-")[0]
        path = judges.ASSETS / f"{name}.safetensors"
        sha256 = judges.save(path, trained.model, trained.variables["params"])
        print(f"{path}: {path.stat().st_size:,} bytes, sha256 {sha256}")


if __name__ == "__main__":
    main(sys.argv[1:])
