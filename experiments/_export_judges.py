"""Writes the weights of trained judges to mmjax/evals/assets: python -m experiments._export_judges [RUNS]

RUNS (default: runs) holds judge_a-small and judge_b-small, each made by `mmjax train experiments/judge_a.py` and b.
"""

import sys
from pathlib import Path

from experiments import _study
from mmjax.evals import judges


def main(runs: Path) -> None:
    for name in ("judge_a", "judge_b"):
        trained = _study.load(runs / f"{name}-small")
        path = judges.ASSETS / f"{name}.safetensors"
        sha256 = judges.save(path, trained.model, trained.variables["params"])
        print(f"{path}: {path.stat().st_size:,} bytes, sha256 {sha256}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
