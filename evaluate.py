"""Scores predictions: python evaluate.py --predictions=OUT --references=FOLDER --output=REPORT."""

from absl import flags

from medsegdiff_jax import cli
from medsegdiff_jax.types import InputError

_PREDICTIONS = flags.DEFINE_string("predictions", None, "Folder written by sample.py.")
_REFERENCES = flags.DEFINE_string("references", None, "Folder with masks/ or masks_<rater>/.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
_SPACING = flags.DEFINE_list("spacing", "1,1", "Pixel height and width; HD95 is in this unit.")
_EMPTY = flags.DEFINE_string("empty", "strict", "Empty-mask policy: strict or ignore.")


def main(argv: list[str]) -> None:
    """Scores --predictions against --references, prints a table, writes --output."""
    del argv
    from medsegdiff_jax import scoring

    try:
        spacing = tuple(float(value) for value in _SPACING.value)
    except ValueError as error:
        raise InputError(f"--spacing={','.join(_SPACING.value)}: not two numbers") from error
    if len(spacing) != 2 or not all(0 < value < float("inf") for value in spacing):
        raise InputError(f"--spacing={','.join(_SPACING.value)}: not two positive numbers")
    result = scoring.evaluate(_PREDICTIONS.value, _REFERENCES.value, spacing, _EMPTY.value)
    scoring.write_report(result, _OUTPUT.value, spacing, _EMPTY.value)
    print(scoring.format_table(result))
    if result.unscored:
        print(f"{len(result.unscored)} references have no prediction and were not scored")
    print(f"wrote metrics.json, per_case.csv and dice.png to {_OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["predictions", "references", "output"])
    cli.run(main)
