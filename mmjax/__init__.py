"""mmjax: the multimodal story in JAX, one file for each system.

`import mmjax` loads nothing; `mmjax.models`, `mmjax.weights` and the rest load when they are first touched (PEP 562).
"""

import importlib

__version__ = "0.1.0"

_PACKAGES = (
    "ops", "nn", "models", "text", "data", "train", "evals", "weights", "parallel", "report", "benchmarks", "nnx", "cli"
)  # fmt: skip


def __getattr__(name: str):
    if name in _PACKAGES:
        return importlib.import_module(f"mmjax.{name}")
    raise AttributeError(f"module 'mmjax' has no attribute {name!r}; it holds {', '.join(_PACKAGES)}")


def __dir__() -> list[str]:
    return [*_PACKAGES, "__version__"]
