"""What the clock says is arithmetic; the clock itself is replaced."""

import platform

import jax
import numpy as np
import pytest

from mmjax.train import speed


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    return now


def test_steps_are_timed_and_pauses_are_not(clock, monkeypatch):
    meter = speed.Meter(batch_size=32, steps=100, seconds=50.0)
    clock[0] += 9  # compiling
    meter.skip()
    for seconds in (1.0, 1.0, 1.0, 3.0):
        clock[0] += seconds
        meter.tick()
    report = meter.read(step=10, waited=0.6)
    assert report["seconds"] == 50 + 9 + 6
    assert report["step_seconds_p50"] == 1.0
    np.testing.assert_allclose(report["step_seconds_p99"], np.percentile([1, 1, 1, 3], 99))
    np.testing.assert_allclose(report["examples_per_second"], 32 * 4 / 6)
    np.testing.assert_allclose(report["data_wait"], 0.1)
    np.testing.assert_allclose(report["seconds_left"], 90 * 1.5)
    assert "mfu" not in report
    clock[0] += 2
    meter.tick()
    second = meter.read(step=11, waited=0.6 + 0.5)
    np.testing.assert_allclose([second["step_seconds_p50"], second["data_wait"]], [2.0, 0.25])
    assert "step_seconds_p50" not in meter.read(step=11, waited=1.1)


def test_the_share_of_the_peak_counts_all_devices(clock, monkeypatch):
    monkeypatch.setattr(speed, "peak_flops", lambda kind: 1e3)
    meter = speed.Meter(batch_size=1, steps=10)
    meter.flops = 1e3
    clock[0] += 0.5
    meter.tick()
    np.testing.assert_allclose(meter.read(1, 0.0)["mfu"], 1e3 / (0.5 * 1e3 * jax.device_count()))


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
        ("TPU v9", None),
    ],
)
def test_peaks_are_known_by_name(kind, peak):
    assert speed.peak_flops(kind) == peak


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_freed_memory_is_kept():
    """In a process of its own: the setting can't be taken back."""
    import subprocess
    import sys

    code = (
        "import resource, numpy as np\n"
        "from mmjax.train import speed\n"
        "faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "def use():\n"
        "    before = faults()\n"
        "    for _ in range(8): np.ones(1 << 26, np.uint8)\n"
        "    return faults() - before\n"
        "import jax; jax.config.update('jax_platforms', 'cpu')\n"
        "use(); given_back = use(); assert speed.keep_freed_memory(); use(); kept = use()\n"
        "assert kept < given_back / 4, (kept, given_back)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
