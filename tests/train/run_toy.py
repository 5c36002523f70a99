"""A run of the trainer's toy as a process of its own, which tests may kill.

run_toy.py WORKDIR [INDEX PORT [UPDATES]]
"""

import dataclasses
import logging
import sys
import time
from pathlib import Path

import jax
import toys
from test_loop import averaged

from mmjax import report
from mmjax.parallel import distributed
from mmjax.parallel.mesh import MeshShape
from mmjax.train import loop

STEPS = 30


@dataclasses.dataclass(frozen=True)
class SlowPoints(toys.Points):
    """Takes its time, so that a kill comes between any two steps."""

    seconds: float = 0.02

    def batches(self, *arguments, **named):
        inner, seconds = super().batches(*arguments, **named), self.seconds

        class Slow:
            def __getitem__(self, i):
                time.sleep(seconds)
                return inner[i]

        return Slow()


def experiment(updates=1, **changes):
    one = averaged(steps=STEPS, save_every=3, eval_every=7, data=SlowPoints(), **changes)
    return dataclasses.replace(one, task=dataclasses.replace(one.task, updates=updates))


def on_one():
    return MeshShape(data=1).build(jax.devices()[:1])


def main(workdir, index=None, port=None, updates="1"):
    logging.basicConfig(level=logging.WARNING)
    report.write = Path  # not what is tested, and slow
    if port is None:
        loop.train(experiment(), workdir, resume=True, mesh=on_one())
        return
    distributed.initialize(f"127.0.0.1:{port}", 2, int(index), timeout=60, heartbeat=20)
    loop.train(experiment(int(updates)), workdir, resume=True)
    distributed.barrier("end", timeout=60)


if __name__ == "__main__":
    main(*sys.argv[1:])
