"""Writes one split of a dataset as a plain folder, to be segmented and scored.

    python -m data --config=configs/brats2021.py --config.data.path=PATH --split=test --output=OUT

OUT gets images/ with the original images, and masks/ (or masks_<rater>/) with the labels that the
model learns; sample.py takes it as --input and evaluate.py as --references.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from data import preparation
from data.catalogue import SPLITS
from medsegdiff_jax import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.", lock_config=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
_SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which cases.")
_COUNT = flags.DEFINE_integer("count", None, "The first so many cases; all without it.")


def main(argv: Sequence[str]) -> None:
    """Writes what the flags name."""
    del argv
    data_config = _CONFIG.value.data
    builder = preparation.builder_of(data_config.name)
    builder.write_split(data_config, _SPLIT.value, Path(_OUTPUT.value), _COUNT.value)
    print(f"wrote {_OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "output"])
    cli.run(main)
