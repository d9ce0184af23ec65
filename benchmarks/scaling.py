"""Weak scaling: what devices say to each other, counted, and what that costs on real machines.

    python -m benchmarks.scaling --config=configs/folder.py --output=benchmarks/results/scaling.json

First, on faked devices of this machine's CPU: a training step with the same share of the batch per
device for 1, 2, 4 and 8 devices, its time and the bytes of its collectives as XLA compiled them.
Faked devices share the same cores, so the ideal time grows with their number; what exceeds that is
the price of splitting. Then, for machines that are not at hand, an estimate from FLOPs (counted by
XLA for --estimate), the bytes above, and published figures; see `MACHINES` for the sources.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks.programs import messages, training_step
from benchmarks.provenance import ROOT, write
from configs import folder
from medsegdiff_jax import atomic, cli
from medsegdiff_jax.types import InputError

_CONFIG = flags.DEFINE_string("config", "configs/folder.py:default,tiny", "Measured on the CPU.")
_SIDE = flags.DEFINE_integer("size", 32, "Side of its images.")
_SHARE = flags.DEFINE_integer("share", 4, "Images per device on the CPU.")
_COUNTS = flags.DEFINE_list("counts", "1,2,4,8", "Numbers of faked devices.")
_SHARDED = flags.DEFINE_bool("sharded", False, "Split the training state over all devices.")
_ESTIMATE = flags.DEFINE_string("estimate", "default,paper", "Recipe and size of the estimate.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")

UTILISATION = 0.4  # of the peak: the goal, not a measurement
# Devices, bfloat16 peak in TFLOP/s, images per device, and the bandwidths in GB/s and one direction
# that an all-reduce passes through, with the number of devices that take part in each stage.
MACHINES = {
    # NVIDIA A100 datasheet: 312 TFLOP/s, NVLink 600 GB/s in both directions together.
    "8 x A100 (one node)": (8, 312, 32, ((8, 300),)),
    # DGX A100 datasheet: beside it one 200 Gb/s InfiniBand adapter per GPU. Sums are made in the
    # node first; then each GPU exchanges its eighth with its peers of the 8 nodes.
    "64 x A100 (8 nodes)": (64, 312, 32, ((8, 300), (8, 25 * 8))),
    # cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, all-reduce bandwidth of a pod 51.2 TB/s.
    "TPU v5e-256": (256, 197, 8, ((256, 51_200 / 256),)),
}


def measure(devices: int) -> dict[str, Any]:
    """A row of `benchmarks.throughput` on that many faked devices.

    Raises:
      InputError: the measured program failed.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    report = Path(f"{_OUTPUT.value or 'scaling'}.{devices}.partial")
    command = [
        *(sys.executable, "-m", "benchmarks.throughput", f"--config={_CONFIG.value}"),
        *(f"--config.data.image_size={_SIDE.value}", f"--batch={_SHARE.value * devices}"),
        *("--repeats=5", "--only=train", f"--output={report.resolve()}"),
        f"--config.model_shards={devices if _SHARDED.value else 1}",
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"{' '.join(command[1:])}: {done.stderr.strip().splitlines()[-1]}")
        return atomic.read_json(report)["rows"]["train"]
    finally:
        report.unlink(missing_ok=True)


def training_cost(argument: str) -> tuple[float, int]:
    """GFLOP of a training step per image, and bytes of the gradients, of a recipe and size."""
    step = training_step(folder.get_config(argument), 1, jax.devices()[:1])
    state, _ = step.arguments
    gradients = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params))
    return step.lower().cost_analysis()["flops"] / 1e9, gradients


def estimate(machine: str, gflop: float, gradients: int) -> dict[str, float]:
    """Step time of a machine, nothing overlapped, which is the worst case.

    A ring all-reduce of n devices sends 2 (n - 1) / n times the data through each (Patarasuk and
    Yuan 2009); latencies are left out.
    """
    devices, peak, share, stages = MACHINES[machine]
    compute = gflop * 1e9 * share / (peak * 1e12 * UTILISATION)
    exchange = sum(2 * (n - 1) / n * gradients / (rate * 1e9) for n, rate in stages)
    return {
        "images_per_s": round(devices * share / (compute + exchange), 1),
        "compute_ms": round(compute * 1e3, 2),
        "exchange_ms": round(exchange * 1e3, 2),
        "efficiency": round(compute / (compute + exchange), 4),
    }


def main(argv: list[str]) -> None:
    """Measures, estimates, prints both tables, writes --output."""
    del argv
    rows = {count: measure(int(count)) for count in _COUNTS.value}
    first = next(iter(rows.values()))["median_s"] / int(_COUNTS.value[0])
    print("devices  ms per step  over ideal  collectives")
    for count, row in rows.items():
        row["over_ideal"] = round(row["median_s"] / (int(count) * first), 3)
        milliseconds, said = row["median_s"] * 1e3, messages(row["collectives"])
        print(f"{count:7}  {milliseconds:11.1f}  {row['over_ideal']:10.2f}  {said}")
    gflop, gradients = training_cost(_ESTIMATE.value)
    print(
        f"\n{_ESTIMATE.value}: {gflop:.0f} GFLOP per image, {gradients / 1e6:.0f} MB of gradients"
    )
    print(f"{'machine':22}  images/s  compute ms  exchange ms  efficiency")
    estimates = {name: estimate(name, gflop, gradients) for name in MACHINES}
    for name, row in estimates.items():
        print(
            f"{name:22}  {row['images_per_s']:8.0f}  {row['compute_ms']:10.1f}  "
            f"{row['exchange_ms']:11.2f}  {row['efficiency']:10.3f}"
        )
    if _OUTPUT.value:
        write(
            _OUTPUT.value,
            flags=re.sub(r"--output=\S+", "", " ".join(sys.argv[1:])).strip(),
            measured=rows,
            estimated=estimates,
            assumed_utilisation=UTILISATION,
        )


if __name__ == "__main__":
    cli.run(main)
