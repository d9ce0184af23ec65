"""What the compiler for TPUs makes of a config, without a TPU: memory per chip, messages, FLOPs.

    pip install 'libtpu==0.0.42.*'   # of the version that `pip install jax[tpu]` would take
    python -m benchmarks.tpu_programs --config=configs/folder.py:default,paper --topology=v5e:2x4 \
        --batch=64 --precision=bfloat16 --output=benchmarks/results/tpu_v5e/default_paper.json

libtpu compiles for the chips of a topology on any Linux machine, with the same result as beside
them. A training step and a whole segmentation are compiled and not run: that they compile and fit
is shown, how fast they are is not.
"""

import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu is loaded for its compiler alone
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # and does not ask Google Cloud where it is
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # it cannot be read without a TPU

import jax
from absl import flags
from jax.experimental import topologies
from ml_collections import config_flags

from benchmarks.programs import compiled, ensemble, messages, training_step
from benchmarks.provenance import hardware, versions
from medsegdiff_jax import atomic, cli
from medsegdiff_jax.types import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "Generation and shape of the slice.")
_BATCH = flags.DEFINE_integer("batch", 64, "Images per training step, cases per sampling call.")
_PRECISION = flags.DEFINE_enum("precision", "bfloat16", ("float32", "bfloat16"), "Compute dtype.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


def chips(topology: str) -> Sequence[jax.Device]:
    """Devices to compile for, which need not be at hand.

    Raises:
      InputError: no libtpu, or it does not know the topology.
    """
    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(f"--topology={topology}: {error}") from error


def main(argv: list[str]) -> None:
    """Compiles, prints a table, writes --output."""
    del argv
    config, devices = _CONFIG.value, chips(_TOPOLOGY.value)
    config.model.dtype = _PRECISION.value
    rows = {}
    print("program        compile s  GiB per chip  messages")
    for name, build in (("training step", training_step), ("ensemble", ensemble)):
        row = rows[name] = compiled(build(config, _BATCH.value, devices).lower())[1]
        said = messages(row["collectives"])
        numbers = f"{row['compile_s']:9.1f}  {row['program_GiB']:12.3f}"
        print(f"{name:13}  {numbers}  {said}", flush=True)
    del rows["ensemble"]["gflops"]  # its loops would count once
    if _OUTPUT.value:
        result = {
            "hardware": hardware(),
            "versions": versions() | {"libtpu": metadata.version("libtpu")},
            "config": config.to_dict(),
            "topology": _TOPOLOGY.value,
            "batch": _BATCH.value,
            "precision": _PRECISION.value,
            "programs": rows,
        }
        atomic.write_json(Path(_OUTPUT.value), result)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    cli.run(main)
