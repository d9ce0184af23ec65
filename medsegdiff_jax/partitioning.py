"""Devices as one mesh axis: batches are split over "data", everything else is replicated."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from medsegdiff_jax.types import InputError


def data_mesh() -> Mesh:
    """A mesh of all devices of all processes along "data"; XLA propagates the shardings (Auto)."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def on_data(mesh: Mesh) -> NamedSharding:
    """The leading axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def shard_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's share of a batch on its devices; the arrays are global."""
    sharding = on_data(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def shard_shared(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts a batch that every process holds whole on the devices, each process its share."""
    sharding = on_data(mesh)
    return {
        name: jax.make_array_from_callback(array.shape, sharding, array.__getitem__)
        for name, array in batch.items()
    }


def check_batch_size(field: str, batch_size: int) -> None:
    """Raises InputError unless the global batch divides evenly over the devices."""
    if batch_size < 1 or batch_size % jax.device_count():
        raise InputError(
            f"config field {field}: {batch_size} is not a multiple of the "
            f"{jax.device_count()} devices"
        )
