"""Scores predictions: python evaluate.py --predictions=OUT --references=FOLDER --output=REPORT."""

from absl import flags

from medsegdiff_jax import cli
from medsegdiff_jax.types import InputError

_PREDICTIONS = flags.DEFINE_multi_string(
    "predictions", None, "Folder written by sample.py; the cases of several are pooled."
)
_REFERENCES = flags.DEFINE_multi_string(
    "references", None, "Folder with masks/, masks_<rater>/ or labelsTr/; or several."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
_SPACING = flags.DEFINE_list(
    "spacing", None, "Pixel height and width of pictures; distances are in this unit. Default 1,1."
)
_NSD_TOLERANCE = flags.DEFINE_float(
    "nsd_tolerance", 2.0, "Distance at which surfaces still agree (NSD), in that unit; volumes: mm."
)
_EMPTY = flags.DEFINE_string("empty", "strict", "Empty-mask policy: strict or ignore.")


def main(argv: list[str]) -> None:
    """Scores --predictions against --references, prints a table, writes --output."""
    del argv
    from medsegdiff_jax import scoring, uncertainty_scoring

    spacing = _spacing(_SPACING.value)
    scoring.check_output(_OUTPUT.value, *_PREDICTIONS.value, *_REFERENCES.value)
    result = scoring.evaluate(
        _PREDICTIONS.value, _REFERENCES.value, spacing, _EMPTY.value, _NSD_TOLERANCE.value
    )
    written = scoring.write_report(result, _OUTPUT.value)
    print(scoring.format_table(result))
    if folders := scoring.format_folders(result):
        print(folders)
    print(f"compared with {result.run['compared with']}")
    if result.uncertainty:
        print(uncertainty_scoring.format_table(result.uncertainty))
    if result.groups:
        count = len(set(result.groups.values()))
        print(f"the intervals are over {count} groups of cases, from groups.csv")
    if result.unscored:
        print(f"{len(result.unscored)} references have no prediction and were not scored")
    print(f"wrote {', '.join(written)} to {_OUTPUT.value}; the report says what each number means")


def _spacing(words: list[str] | None) -> tuple[float, float] | None:
    if words is None:
        return None
    try:
        spacing = tuple(float(word) for word in words)
    except ValueError as error:
        raise InputError(f"--spacing={','.join(words)}: not two numbers") from error
    if len(spacing) != 2 or not all(0 < value < float("inf") for value in spacing):
        raise InputError(f"--spacing={','.join(words)}: not two positive numbers")
    return spacing


if __name__ == "__main__":
    flags.mark_flags_as_required(["predictions", "references", "output"])
    cli.run(main)
