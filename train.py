"""Trains a segmentation model: python train.py --config=configs/folder.py --workdir=runs/mine."""

import logging

from absl import flags
from ml_collections import config_flags

from medsegdiff_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; an existing one is resumed.")
_DISTRIBUTED = flags.DEFINE_string("distributed", "auto", "Join other processes: auto, on, off.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, with --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one, with --coordinator.")


def main(argv: list[str]) -> None:
    """Trains by the config; exits 0 when done, or when SIGTERM was answered by a checkpoint."""
    del argv
    from medsegdiff_jax import hosts, trainer

    hosts.initialize(
        _DISTRIBUTED.value, _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    )
    logging.getLogger("medsegdiff_jax").info("writing to %s", _WORKDIR.value)
    trainer.train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    cli.run(main)
