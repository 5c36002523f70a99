"""Every test sees eight devices on the CPU. Set before anything imports jax."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
HURRY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def pytest_configure(config):
    """Tests compile much and compute little, so the compiler is told to hurry; not where something is trained."""
    if config.option.markexpr not in ("train", "slow", "notebook"):
        os.environ["XLA_FLAGS"] += f" {HURRY}"
