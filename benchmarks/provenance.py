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
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "commit": commit,
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def write(path: str | os.PathLike, **measured: Any) -> None:
    """Writes what was measured, hardware and versions first, as JSON."""
    atomic.write_json(path, {"hardware": hardware(), "versions": versions(), **measured})
