"""Several processes that run one program, on one machine or many."""

import logging
import secrets
import zlib
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from medsegdiff_jax.types import InputError, check_one_of

MODES = ("auto", "on", "off")

_log = logging.getLogger("medsegdiff_jax")


def initialize(
    mode: str, coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Joins the other processes; to be called before JAX touches a device.

    Args:
      mode: "auto" joins if the environment tells of others, as under SLURM, Open MPI, on a TPU
        slice or in GKE; "on" insists; "off" stays alone.
      coordinator: HOST:PORT of process 0, where the environment does not tell.
      num_processes: how many there are, with `coordinator`.
      process_id: which one this is, from 0, with `coordinator`.

    Raises:
      InputError: an unknown mode, flags that do not belong together, or nobody to join.
    """
    check_one_of("--distributed", mode, MODES)
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and (not all(given) or mode == "off"):
        raise InputError(
            "--coordinator, --num_processes and --process_id belong together, and not to "
            "--distributed=off"
        )
    if mode == "off":
        return
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except ValueError as error:
        if mode == "on" or coordinator:
            raise InputError(f"--distributed={mode}: {error}") from error
        return  # the environment tells of nobody
    _log.info("process %d of %d", jax.process_index(), jax.process_count())
    if not is_first():
        _log.setLevel(logging.WARNING)  # one voice is enough


def is_first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come to this point."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def agree(text: str) -> bool:
    """Whether every process came here with the same text; all of them must ask."""
    if jax.process_count() == 1:
        return True
    mine = np.uint32(zlib.crc32(text.encode()))
    return bool(np.all(multihost_utils.process_allgather(mine) == mine))


def all_see(folder: Path) -> bool:
    """Whether every process sees what process 0 writes to a folder; all of them must ask."""
    if jax.process_count() == 1:
        return True
    # A new name, since file systems of networks may remember for a while that a file is missing.
    drawn = multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))
    mark = folder / f".seen_{int(drawn):08x}"
    if is_first():
        mark.touch()
    wait_for_all("mark written")
    seen = not any_process(not mark.exists())
    if is_first():
        mark.unlink()
    return seen
