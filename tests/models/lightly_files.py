"""lightly's losses and heads by file: its packages import torchvision, which none of these files needs."""

import functools
import importlib
import importlib.util
import sys
import types
from pathlib import Path

import pytest

PACKAGES = ("lightly", "lightly.loss", "lightly.models", "lightly.models.modules")
FILES = {"loss": ("dino_loss", "ibot_loss", "koleo_loss", "swav_loss"), "models.modules": ("heads",)}


@functools.cache
def load() -> types.SimpleNamespace:
    """Every class and function of FILES in one namespace; skips where torch or lightly is not installed."""
    pytest.importorskip("torch", reason="needs the [parity] extra")
    found = importlib.util.find_spec("lightly")
    if found is None:
        pytest.skip("needs `pip install --no-deps lightly`")
    folder = Path(found.origin).parent
    for name in PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    # Heads take one initialiser from a file that needs torchvision for others; all weights are set by the tests.
    utils = types.ModuleType("lightly.models.utils")
    utils._no_grad_trunc_normal = lambda *_, **__: None
    sys.modules["lightly.models.utils"] = sys.modules["lightly.models"].utils = utils
    names = [f"lightly.{package}.{file}" for package, files in FILES.items() for file in files]
    return types.SimpleNamespace(**{k: v for name in names for k, v in vars(importlib.import_module(name)).items()})
