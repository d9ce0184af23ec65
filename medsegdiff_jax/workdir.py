"""The folder of a training run: whose it is, and that all processes see it."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from medsegdiff_jax import atomic, hosts
from medsegdiff_jax.input_pipeline import Dataset
from medsegdiff_jax.types import InputError
from medsegdiff_jax.version import __version__

_log = logging.getLogger("medsegdiff_jax")

# The fingerprint tells whether the data at another place are the same; the rest is how fast they
# are read.
_READING = ("data.path", "data.cache_dir", "data.workers", "data.read_threads", "data.prefetch")
# What must stay the same for a workdir to be resumed,
_IDENTITY = ("seed", "init_from", "batch_size", "data", "model", "diffusion", "loss")
# but for these; rematerialisation is how much memory a step takes.
_NO_IDENTITY = (*_READING, "model.remat")


def prepare_workdir(
    config: Any, dataset: Dataset, workdir: Path, start: str = ""
) -> dict[str, Any]:
    """Writes config.json, or checks that the run in `workdir` is this one; returns the metadata.

    Args:
      config: the whole config.
      dataset: what it trains on.
      workdir: made if it is missing.
      start: digest of the weights that this process has read to start from, if any.

    Raises:
      InputError: `workdir` holds a run with another config or another dataset, or what
        `check_hosts` refuses.
    """
    stored = json.loads(config.to_json_best_effort())
    metadata = {
        "version": __version__,
        "config": stored,
        "task": dataset.task.to_json(),
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
    }
    path = workdir / "config.json"
    if path.exists():
        earlier = atomic.read_json(path)
        before, now = (_comparable(one) for one in (earlier["config"], stored))
        for field in sorted(now.keys() | before):
            if field.partition(".")[0] not in _IDENTITY or field in _NO_IDENTITY:
                continue
            if field not in now or field not in before:
                raise InputError(
                    f"{path}: config field {field} is not known to both this version and that of "
                    f"the run, {earlier['version']}; resume with that or choose a new --workdir"
                )
            if before[field] != now[field]:
                raise InputError(
                    f"{path}: config field {field}: {before[field]!r} differs from this run's "
                    f"{now[field]!r}; resume with the same values or choose a new --workdir"
                )
        if earlier["fingerprint"] != dataset.fingerprint:
            raise InputError(f"{path}: the dataset has changed since this run began")
        for field in sorted(now.keys() & before):  # others came or went with a version
            if before[field] != now[field]:
                _log.info("from here on %s=%s, not %s", field, now[field], before[field])
    if hosts.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
    check_hosts(workdir, metadata, start)  # after which all have read what process 0 now replaces
    if hosts.is_first():
        # Not by write_json, whose strict JSON has no infinity, which a limit of a config may be.
        atomic.write_text(path, json.dumps(metadata, indent=2) + "\n")
    hosts.wait_for_all("config written")
    return metadata


def _comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config; a path that counts, in one spelling."""
    fields = flatten_dict(config, sep=".")
    if fields.get("init_from"):
        fields["init_from"] = os.path.realpath(fields["init_from"])
    return fields


def check_hosts(workdir: Path, metadata: Mapping[str, Any], start: str = "") -> None:
    """Raises InputError, in every process, if they do not all make the same run on one disk."""
    config = flatten_dict(metadata["config"], sep=".")
    run = {field: value for field, value in config.items() if field not in _READING}
    if not hosts.agree(json.dumps([metadata["version"], metadata["fingerprint"], run, start])):
        raise InputError(
            "the processes have other versions, configs, data or first weights than each other; "
            "start them with the same flags and the same files"
        )
    if not hosts.all_see(workdir):
        raise InputError(
            f"{workdir}: not every process sees what process 0 writes there; --workdir must lie on "
            "a file system that all hosts share"
        )
