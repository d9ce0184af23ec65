"""Time of single layers on this machine, by how XLA compiles them and beside PyTorch, if installed.

    python -m benchmarks.layers --batch=8 --output=benchmarks/results/layers_cpu.json

The layers are those of the `small` network at 64 x 64: a 3 x 3 convolution and GroupNorm with SiLU,
each level's size and width. `plain` is XLA as it comes, `ours` what partitioning.py tells it.
The implementations are called in turn, so that a busy machine slows all of them.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.provenance import versions, write
from medsegdiff_jax import cli
from medsegdiff_jax.networks import layers
from medsegdiff_jax.partitioning import compiler_options, training_mesh

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

_BATCH = flags.DEFINE_integer("batch", 8, "Images at once.")
_REPEATS = flags.DEFINE_integer("repeats", 20, "Timed calls, after one that warms up.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")

SHAPES = ((64, 16), (64, 24), (32, 48), (16, 96), (8, 192))  # side, channels
Calls = dict[str, Callable[[], Any]]


def jax_calls(kind: str, x: np.ndarray) -> Calls:
    """Forward pass and gradients of a layer on x [B, S, S, C], under both sets of options."""
    features = x.shape[-1]
    if kind == "convolution":
        module = layers.conv(features, jnp.dtype("float32"))
    else:
        module = nn.Sequential([layers.group_norm(features, jnp.dtype("float32")), nn.silu])
    params, x = module.init(jax.random.key(0), x), jnp.asarray(x)

    def loss(params: Any, x: Any) -> Any:
        return jnp.sum(jnp.square(module.apply(params, x)))

    calls = {}
    ours = compiler_options(training_mesh(1, jax.devices()[:1]))
    for name, options in (("plain", {}), ("ours", ours)):
        forward = jax.jit(module.apply, compiler_options=options)
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), compiler_options=options)
        calls[f"{name} forward"] = lambda f=forward: jax.block_until_ready(f(params, x))
        calls[f"{name} gradient"] = lambda f=gradient: jax.block_until_ready(f(params, x))
    return calls


def torch_calls(kind: str, x: np.ndarray) -> Calls:
    """The same layer in PyTorch, channels_last."""
    features = x.shape[-1]
    x = torch.from_numpy(x.transpose(0, 3, 1, 2)).to(memory_format=torch.channels_last)
    x.requires_grad_()
    shape = (features, features, 3, 3) if kind == "convolution" else (features,)
    weights = [
        torch.ones(shape).mul_(0.05).requires_grad_(),
        torch.zeros(features).requires_grad_(),
    ]

    def apply() -> Any:
        if kind == "convolution":
            return F.conv2d(x, *weights, padding=1)
        return F.silu(F.group_norm(x, features // layers.GROUP_CHANNELS, *weights))

    def forward() -> Any:
        with torch.inference_mode():
            return apply()

    def gradient() -> Any:
        return torch.autograd.grad(apply().square().sum(), (x, *weights))

    return {"PyTorch forward": forward, "PyTorch gradient": gradient}


def in_turn(calls: Calls, repeats: int) -> dict[str, float]:
    """Median milliseconds of each call."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(repeats + 1):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if index:
                seconds[name].append(time.perf_counter() - began)
    return {name: round(1e3 * statistics.median(values), 3) for name, values in seconds.items()}


def main(argv: list[str]) -> None:
    """Measures all layers, prints a table, writes the JSON file."""
    del argv
    rows = []
    for kind in ("convolution", "norm and SiLU"):
        for side, channels in SHAPES:
            shape = (_BATCH.value, side, side, channels)
            x = np.random.default_rng(0).standard_normal(shape, np.float32)
            calls = jax_calls(kind, x) | (torch_calls(kind, x) if torch else {})
            rows.append({"layer": kind, "shape": shape, "ms": in_turn(calls, _REPEATS.value)})
            cells = ", ".join(f"{name} {value:.2f}" for name, value in rows[-1]["ms"].items())
            print(f"{kind} {shape} ms: {cells}", flush=True)
    if _OUTPUT.value:
        with_torch = versions() | ({"torch": torch.__version__} if torch else {})
        write(_OUTPUT.value, versions=with_torch, layers=rows)


if __name__ == "__main__":
    cli.run(main)
