"""Writes one split of the phantoms as a plain folder: images/ and masks_<rater>/, PNG.

    python -m data.phantom --output=runs/demo/test --split=test

The cases are those of the dataset, at the size they are drawn in.
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags
from tqdm import tqdm

from data.phantom import appearance, model
from medsegdiff_jax import cli
from medsegdiff_jax.imaging import write_png
from medsegdiff_jax.types import InputError

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", list(model.SPLIT_SIZES), "Which cases.")
_VARIANT = flags.DEFINE_enum("variant", "binary", list(model.TASKS), "Which phantoms.")
_COUNT = flags.DEFINE_integer("count", None, "The first so many cases; all without it.")


def write_split(output: Path, variant: str, split: str, count: int | None = None) -> None:
    """Writes images/<case>.png and masks_1/<case>.png ... masks_5/<case>.png (label values).

    Args:
      output: the folder, made if it is missing.
      variant: "binary" or "multiclass".
      split: "train", "validation" or "test".
      count: how many cases from the first on; None for all.

    Raises:
      InputError: `count` is outside 1 ... the number of cases.
    """
    total = model.SPLIT_SIZES[split]
    if count is not None and not 1 <= count <= total:
        raise InputError(f"--count={count}: {split} has cases 1 to {total}")
    for number in tqdm(range(count or total), desc=f"writing {split}", unit="case", disable=None):
        case = model.case_id(variant, split, number)
        write_png(output / "images" / f"{case}.png", appearance.render(case))
        for rater, labels in enumerate(model.stored_raters(case), 1):
            write_png(output / f"masks_{rater}" / f"{case}.png", labels)


def main(argv: Sequence[str]) -> None:
    """Writes what the flags name."""
    del argv
    write_split(Path(_OUTPUT.value), _VARIANT.value, _SPLIT.value, _COUNT.value)
    print(f"wrote {_OUTPUT.value}")


if __name__ == "__main__":
    cli.run(main)
