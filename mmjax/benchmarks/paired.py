"""Two programs timed in turns, so that what else the machine does meets both."""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Paired(NamedTuple):
    """[pairs] seconds of the turns: on the clock, and of all cores together."""

    first: np.ndarray
    second: np.ndarray
    first_cpu: np.ndarray
    second_cpu: np.ndarray


def times_faster(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Of the first: the median of the pairs' ratios, and their quartiles."""
    low, median, high = np.percentile(second / first, [25, 50, 75])
    return float(median), float(low), float(high)


def measure(first: Callable[[], None], second: Callable[[], None], pairs: int) -> Paired:
    """Turns in the order A B B A: a drift of the machine's speed favours neither. Both must be warm."""
    if pairs < 2 or pairs % 2:
        raise ValueError(f"pairs must be even and at least 2, as A B B A holds two of them, got {pairs}")
    turns = [[seconds(program) for program in (first, second, second, first)] for _ in range(pairs // 2)]
    a, b, c, d = np.array(turns).swapaxes(0, 1)  # each [pairs/2 2]: clock and cores
    (first_clock, first_cpu), (second_clock, second_cpu) = np.concatenate([a, d]).T, np.concatenate([b, c]).T
    return Paired(first_clock, second_clock, first_cpu, second_cpu)


def seconds(run: Callable[[], None]) -> tuple[float, float]:
    """On the clock, and of all this process's threads together: the second is hardly moved by others on the machine."""
    clock, cores = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - clock, time.process_time() - cores


def machine(*packages: str) -> str:
    """Versions of the packages that are installed, and the processor."""
    installed = {d.metadata["Name"].lower(): d.version for d in importlib.metadata.distributions()}
    info = Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    processor = models[0].split(":")[1].strip() if models else platform.processor() or platform.machine()
    return ", ".join(f"{name} {installed[name]}" for name in packages if name in installed) + f" | {processor}"
