"""MedSegDiff-V2 in JAX and Flax: train, segment, evaluate.

`Segmenter`, `fusion` and `metrics` are imported on first use, so that `import medsegdiff_jax` is
cheap and a script that only scores masks never starts an accelerator.
"""

import importlib
from typing import Any

from medsegdiff_jax.version import __version__

__all__ = ["Segmenter", "__version__", "fusion", "metrics"]


def __getattr__(name: str) -> Any:
    """Resolves the lazy public names (PEP 562); raises AttributeError for any other."""
    if name == "Segmenter":
        return importlib.import_module("medsegdiff_jax.segmenter").Segmenter
    if name in ("fusion", "metrics"):
        return importlib.import_module(f"medsegdiff_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
