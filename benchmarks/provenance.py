"""Where and with what a figure was measured, written beside it."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from medsegdiff_jax import atomic

ROOT = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def hardware() -> dict[str, str | int]:
    """Processor, cores and, through JAX, accelerators."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    return {"cpu": cpu, "cores": os.cpu_count(), "devices": devices}


def versions() -> dict[str, str]:
    """Versions of Python and the libraries, and the commit."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def _commit() -> str:
    """The commit, with "-dirty" if the code is not its; "" outside of a repository."""
    found = _git("rev-parse", "HEAD").stdout.strip()
    # What benchmarks write is tracked, too.
    changed = _git("diff", "--quiet", "HEAD", "--", ".", ":!docs", ":!benchmarks/results")
    return f"{found}-dirty" if found and changed.returncode else found


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def write(path: str | os.PathLike, **measured: Any) -> None:
    """Writes what was measured, hardware and versions first, as JSON."""
    atomic.write_json(path, {"hardware": hardware(), "versions": versions(), **measured})
