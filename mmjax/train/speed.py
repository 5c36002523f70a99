"""What the clock and the devices say: step times, examples/s, share of the chip's peak, waiting for data, memory."""

import ctypes
import os
import platform
import resource
import sys
import time
from typing import Any

import jax
import numpy as np

# Dense bfloat16 FLOP/s of one device, from the makers' data sheets.
PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}

ACCELERATORS = ("/dev/accel0", "/dev/vfio/0", "/dev/nvidiactl", "/dev/kfd")  # TPU, TPU, NVIDIA, AMD


def peak_flops(device_kind: str) -> float | None:
    """Of the longest name in PEAK that the device's name starts with."""
    names = [name for name in PEAK if device_kind.startswith(name)]
    return PEAK[max(names, key=len)] if names else None


class Meter:
    """Times steps; `read` sums up those since it was last called."""

    def __init__(self, batch_size: float, steps: int, seconds: float = 0.0):
        """batch_size: new examples for each step; seconds: of the run so far."""
        self._batch_size, self._steps = batch_size, steps
        self.flops: float | None = None  # of one step over all devices, where their peak is known
        self.seconds, self._waited = seconds, 0.0
        self._times: list[float] = []
        self._recent: list[float] = []
        self._last = time.perf_counter()

    def skip(self) -> None:
        """What has passed since the last step (compiling, an eval, a save) is no step time; it counts for the run."""
        now = time.perf_counter()
        self.seconds, self._last = self.seconds + now - self._last, now

    def tick(self) -> None:
        """A step is done."""
        before = self.seconds
        self.skip()
        self._times.append(self.seconds - before)

    def read(self, step: int, waited: float) -> dict[str, float]:
        """waited: seconds that all steps so far have waited for data."""
        times, waiting = self._times, waited - self._waited
        self._times, self._waited = [], waited
        report = {"seconds": self.seconds, **memory()}
        if not times:
            return report
        self._recent = (self._recent + times)[-200:]
        total = sum(times)
        report |= {
            "step_seconds_p50": float(np.percentile(times, 50)),
            "step_seconds_p99": float(np.percentile(times, 99)),
            "examples_per_second": self._batch_size * len(times) / total,
            "data_wait": min(waiting / total, 1.0),
            "seconds_left": float(np.mean(self._recent)) * (self._steps - step),
        }
        if self.flops is not None:
            peak = peak_flops(jax.devices()[0].device_kind) * jax.device_count()
            report["mfu"] = self.flops * len(times) / total / peak
        return report


def memory() -> dict[str, float]:
    """The most that was in use so far, in bytes: of this process's first device where it tells, and of the process."""
    stats: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    report = {"host_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}
    if "peak_bytes_in_use" in stats:
        report["device_bytes"] = float(stats["peak_bytes_in_use"])
    return report


def keep_freed_memory() -> bool:
    """On the CPU, lets glibc keep the pages of freed arrays instead of giving each back to the kernel and asking for it
    again in the next step. Says whether it could. A step of a small CLIP spends 0.004 s in the kernel instead of 0.08
    (and 0.19 s in itself), for a third more memory.

    Call it before JAX starts its threads: those that exist keep memory of their own, which is always given back."""
    if platform.libc_ver()[0] != "glibc" or (jax.config.jax_platforms or _platform_here()) != "cpu":
        return False
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # M_* of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(trim_threshold, 2**31 - 1), mallopt(mmap_max, 0), mallopt(arena_max, 1)])


def _platform_here() -> str:
    """Without asking JAX, which would start its threads."""
    return "accelerator" if any(map(os.path.exists, ACCELERATORS)) else "cpu"
