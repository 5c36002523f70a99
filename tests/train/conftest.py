"""What the trainer's tests share."""

import json
from pathlib import Path

import pytest

from mmjax import report


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
