"""What the trainer's tests share."""

import json
import os
from pathlib import Path

import jax
import pytest

from mmjax import report


@pytest.fixture(scope="session", autouse=True)
def compile_once(tmp_path_factory):
    """A run that is stopped and goes on compiles the same step again; here it finds it on the disk."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("compiled")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(autouse=True)
def plain_report(monkeypatch, request):
    """Drawing curves takes a second per run; the test of the page itself is marked `real_report`."""
    if "real_report" not in request.fixturenames:
        monkeypatch.setattr(report, "write", lambda workdir: Path(workdir))


@pytest.fixture
def real_report():
    """Asks for the report that `train` writes."""


@pytest.fixture(scope="session")
def lines():
    """lines(path) -> the objects of a JSON lines file."""
    return lambda path: [json.loads(line) for line in Path(path).read_text().splitlines()]
