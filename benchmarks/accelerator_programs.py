"""What the compilers for TPUs and GPUs make of a config, without either: memory and messages.

    pip install 'libtpu==0.0.42.*'   # of the version that `pip install jax[tpu]` would take
    pip install --no-deps jax-cuda13-plugin==0.10.2 jax-cuda13-pjrt==0.10.2   # of jaxlib's version
    python -m benchmarks.accelerator_programs --config=configs/folder.py:default,paper \
        --topology=v5e:2x4 --batch=64 --output=benchmarks/results/accelerators/v5e_default.json

`--topology=v5e:2x4` names TPUs as Google does, `--topology=h100:8` so many GPUs of one machine.
Both compilers work on any Linux machine for chips that are elsewhere. A training step and a whole
segmentation are compiled and not run: that they compile and fit is shown, how fast they are is not,
though no step is faster than what it moves takes at the memory's bandwidth. cuDNN chooses its
algorithms beside a GPU only, so what these need for themselves is not counted.
"""

import json
import os
from collections.abc import Sequence
from importlib import metadata

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the compilers are loaded, not their devices
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu does not ask Google Cloud where it is
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # only the chips could read it

import jax
from absl import flags
from jax.experimental import topologies
from ml_collections import config_flags

from benchmarks.programs import compiled, ensemble, messages, training_step
from benchmarks.provenance import versions, write
from medsegdiff_jax import cli
from medsegdiff_jax.types import InputError

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "TPU slice, or a100, h100 or h200:COUNT.")
_BATCH = flags.DEFINE_integer("batch", 64, "Images per training step, cases per sampling call.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")

_HOPPER = {
    "core_count": 132,
    "fpus_per_core": 128,
    "clock_rate_ghz": 1.98,
    "l2_cache_size": 50 * 2**20,
    "shared_memory_per_core": 228 * 2**10,
    "shared_memory_per_block_optin": 227 * 2**10,
    "cuda_compute_capability": {"major": 9},
}
GPUS = {
    "a100": {
        "core_count": 108,
        "fpus_per_core": 64,
        "clock_rate_ghz": 1.41,
        "l2_cache_size": 40 * 2**20,
        "shared_memory_per_core": 164 * 2**10,
        "shared_memory_per_block_optin": 163 * 2**10,
        "cuda_compute_capability": {"major": 8},
        "memory_bandwidth": 2_039_000_000_000,
        "device_memory_size": 79 * 2**30,
    },
    "h100": _HOPPER | {"memory_bandwidth": 3_352_000_000_000, "device_memory_size": 79 * 2**30},
    "h200": _HOPPER | {"memory_bandwidth": 4_800_000_000_000, "device_memory_size": 139 * 2**30},
}
"""What XLA asks of a GPU (its GpuDeviceInfoProto): sizes in bytes, bandwidth in bytes per second;
of the SXM models, from NVIDIA's data sheets and tuning guides."""
_ALL_GPUS = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "shared_memory_per_block": 48 * 2**10,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
}
_COMPILERS = ("libtpu", "jax-cuda13-plugin")


def chips(topology: str) -> Sequence[jax.Device]:
    """Devices to compile for, which need not be at hand.

    Raises:
      InputError: no compiler for them, or it does not know the topology.
    """
    name, _, count = topology.partition(":")
    try:
        if name not in GPUS:
            return topologies.get_topology_desc(topology, platform="tpu").devices
        target = {
            "gpu_device_info": _ALL_GPUS | GPUS[name],
            "platform_name": "CUDA",
            "runtime_version": {"major": 13},
            "dnn_version_info": {"major": 9, "minor": 12},
            "device_description_str": name,
        }
        return topologies.get_topology_desc(
            name, platform="cuda", target_config=_text_proto(target), topology=f"1x1x{count or 1}"
        ).devices
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"--topology={topology}: {error} (--help says which compiler it needs)"
        ) from error


def _text_proto(fields: dict) -> str:
    """Nested fields in the text format of protocol buffers."""
    words = (
        f"{name} {{ {_text_proto(value)} }}"
        if isinstance(value, dict)
        else f"{name}: {json.dumps(value)}"
        for name, value in fields.items()
    )
    return " ".join(words)


def compiler_versions() -> dict[str, str]:
    """Of those of the compilers that are installed."""
    installed = {one.metadata["Name"]: one.version for one in metadata.distributions()}
    return {name: installed[name] for name in _COMPILERS if name in installed}


def main(argv: list[str]) -> None:
    """Compiles, prints a table, writes --output."""
    del argv
    config, devices = _CONFIG.value, chips(_TOPOLOGY.value)
    rows = {}
    print("program        compile s  GiB per chip  GiB moved  messages")
    for name, build in (("training step", training_step), ("ensemble", ensemble)):
        lowered = build(config, _BATCH.value, devices).lower()
        row = rows[name] = compiled(lowered, in_loops=name == "ensemble")[1]
        numbers = (row["compile_s"], row["program_GiB"], row["moved_GiB"])
        columns = "{:9.1f}  {:12.3f}  {:9.1f}".format(*numbers)
        print(f"{name:13}  {columns}  {messages(row['collectives'])}", flush=True)
    if _OUTPUT.value:
        write(
            _OUTPUT.value,
            versions=versions() | compiler_versions(),
            config=config.to_dict(),
            topology=_TOPOLOGY.value,
            batch=_BATCH.value,
            dtype=config.model.dtype,
            programs=rows,
        )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    cli.run(main)
