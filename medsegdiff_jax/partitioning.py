"""Which device holds what.

Training: a mesh of axes "data" and "model". A batch is split over all devices. Parameters, their
average and the optimizer's moments are whole on every row of "data" and split over "model": with
one device along "model" that is data parallelism, with all of them fully sharded (ZeRO, Rajbhandari
et al. 2020). A sharded step gathers the parameters, computes, and scatters the gradients, so that
each device updates the part that it holds.

Sampling needs no exchange at all: cases are split along "data", ensemble members along "model".
Validation does so on all devices, a `Segmenter` on those of its process, for images of its own.

What the compiler is told about these devices stands here, too (`compiler_options`).
"""

import functools
import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medsegdiff_jax.types import InputError, check_at_least

AXES = ("data", "model")
_SMALLEST = 2**10  # elements; splitting less saves nothing and costs a message
_ON_CPU = {"xla_cpu_experimental_ynn_fusion_type": ""}  # no part of a program goes to YNNPACK

Tree = TypeVar("Tree")


def training_mesh(model_shards: int, devices: Sequence[jax.Device]) -> Mesh:
    """All `devices`, `model_shards` of them along "model".

    Raises:
      InputError: that does not divide them (field model_shards).
    """
    if model_shards < 1 or len(devices) % model_shards:
        raise InputError(
            f"config field model_shards: {model_shards} does not divide the {len(devices)} devices"
        )
    return _mesh(devices, model_shards)


def sampling_mesh(cases: int, devices: Sequence[jax.Device]) -> Mesh:
    """As many along "data" as divide a batch of `cases`, the others along "model"."""
    return _mesh(devices, len(devices) // math.gcd(cases, len(devices)))


def even_batch(cases: int, devices: int) -> int:
    """The least batch, from `cases` on, that as many devices as possible can share evenly."""
    along_data = max(n for n in range(1, min(cases, devices) + 1) if devices % n == 0)
    return -(-cases // along_data) * along_data


def _mesh(devices: Sequence[jax.Device], along_model: int) -> Mesh:
    """In one order of the devices, process by process; XLA propagates the shardings (Auto).

    `jax.make_mesh` orders the chips of a TPU by the mesh's shape. Then the meshes of training and
    validation could not share arrays, and a process's rows of a batch would not follow each other.
    """
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    grid = np.array(ordered).reshape(-1, along_model)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def on_batch(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def on_data(mesh: Mesh) -> NamedSharding:
    """The leading axis is split along "data" alone."""
    return NamedSharding(mesh, PartitionSpec("data"))


def state_shardings(mesh: Mesh, tree: Tree) -> Tree:
    """Where the leaves of parameters or of the optimizer's state lie, a NamedSharding for each."""
    shards = mesh.shape["model"]
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _split(leaf.shape, shards)), tree)


def gathered(tree: Tree) -> Tree:
    """Within a jitted function: every device gets the whole arrays."""
    return _constrained(tree, lambda leaf, shards: PartitionSpec())


def scattered(tree: Tree) -> Tree:
    """Within a jitted function: every device keeps the part that `state_shardings` gives it."""
    return _constrained(tree, lambda leaf, shards: _split(leaf.shape, shards))


def _constrained(tree, spec):
    shards = jax.sharding.get_abstract_mesh().shape.get("model", 1)
    if shards == 1:
        return tree
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, spec(leaf, shards)), tree
    )


def _split(shape: tuple[int, ...], shards: int) -> PartitionSpec:
    """The longest axis that `shards` divides is split over "model"; small arrays stay whole."""
    axes = [axis for axis, length in enumerate(shape) if length % shards == 0]
    if shards == 1 or not axes or math.prod(shape) < _SMALLEST:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*("model" if axis == longest else None for axis in range(longest + 1)))


def shard_batch(sharding: NamedSharding, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's share of a batch on its devices; the arrays are global."""
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def shard_shared(sharding: NamedSharding, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts a batch that every process holds whole on the devices, each process its share."""
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in batch.items()
    }


def check_batch_size(batch_size: int, parts: int) -> None:
    """Raises InputError unless each part of a batch divides evenly over the devices."""
    check_at_least("config field accumulate_steps", parts)
    check_at_least("config field batch_size", batch_size)
    if batch_size % (parts * jax.device_count()):
        times = f"{parts} parts on " if parts > 1 else ""
        raise InputError(
            f"config field batch_size: {batch_size} is not a multiple of {times}"
            f"{jax.device_count()} devices"
        )


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """What XLA is told about networks on these devices; nothing but on CPUs.

    There, jaxlib 0.10 to 0.12 leave convolutions to YNNPACK, and training steps take 1.2 (V2) to
    1.75 times (UNet) as long as with XLA's own (benchmarks/README.md).
    """
    return _options_of_cpus() if mesh.devices.flat[0].platform == "cpu" else {}


@functools.cache
def _options_of_cpus() -> dict[str, str]:
    """The option is experimental: a version that does not know it does without."""
    try:
        jax.jit(lambda x: x, compiler_options=_ON_CPU)(0.0)
    except jax.errors.JaxRuntimeError:
        return {}
    return _ON_CPU
