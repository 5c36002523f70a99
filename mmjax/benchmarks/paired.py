"""Two programs timed in turns, so that what else the machine does meets both."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Paired(NamedTuple):
    first: np.ndarray  # [pairs] seconds of a turn
    second: np.ndarray  # [pairs]

    def ratio(self) -> tuple[float, float, float]:
        """How many times faster the first is: median of the pairs' ratios, and their quartiles."""
        low, median, high = np.percentile(self.second / self.first, [25, 50, 75])
        return float(median), float(low), float(high)


def measure(first: Callable[[], None], second: Callable[[], None], pairs: int) -> Paired:
    """Turns in the order A B B A: a drift of the machine's speed favours neither. Both must be warm."""
    if pairs < 2 or pairs % 2:
        raise ValueError(f"pairs must be even and at least 2, as A B B A holds two of them, got {pairs}")
    turns = [(seconds(first), seconds(second), seconds(second), seconds(first)) for _ in range(pairs // 2)]
    a, b, c, d = np.array(turns).T
    return Paired(np.concatenate([a, d]), np.concatenate([b, c]))


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
