"""What members in opposite pairs are worth: an even ensemble beside one of independent members.

    python sample.py --checkpoint=RUN --input=IN --output=OUT --members=20 --save=mask,members
    python -m benchmarks.opposite_pairs --predictions=OUT --references=FOLDER --output=FILE

Members 2 k and 2 k + 1 start from opposite noise (`denoiser.make_members_fn`), those of different
pairs from independent noise. Of 2 n saved members the first n are n / 2 pairs, and every second one
makes n independent members; so are the others, the odd ones. For the three the command prints the
Dice of the vote against the majority of the raters and the energy distance to the raters, and the
differences between pairs and the mean of the other two, with intervals over cases.
"""

from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.provenance import write
from medsegdiff_jax import atomic, cli, fusion, metrics, scored_files
from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.progress import progress
from medsegdiff_jax.types import InputError, Task, class_mask


def ensembles(members: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """2 n members in the order of drawing -> three ensembles of n.

    Raises:
      InputError: their number is no multiple of four.
    """
    if len(members) < 4 or len(members) % 4:
        raise InputError(f"{len(members)} members: a multiple of four is needed")
    paired = members[: len(members) // 2]
    return {"pairs": paired, "even": members[::2], "odd": members[1::2]}


def score(members: list[np.ndarray], raters: list[np.ndarray], task: Task) -> tuple[float, float]:
    """Dice of the vote and energy distance to the raters, means over classes; NaN left out."""
    vote, majority = fusion.majority(members, task), fusion.majority(raters, task)
    dice, distance = [], []
    for index in range(len(task.classes)):
        own, reference = (class_mask(labels, task, index) for labels in (vote, majority))
        dice.append(float(np.nan_to_num(metrics.dice(own, reference), nan=1.0)))
        sets = ([class_mask(one, task, index) for one in ones] for ones in (members, raters))
        distance.append(metrics.generalized_energy_distance(*map(np.array, sets)))
    return float(np.mean(dice)), float(np.mean(distance))


def measure(folder: Path, references: Path) -> dict[str, dict[str, list[float]]]:
    """{"dice" or "ged": {ensemble: a value per case}}.

    Raises:
      InputError: no members were saved, or files that do not fit.
    """
    predictions = scored_files.read_predictions([folder])
    task, cases = predictions.task, predictions.cases
    raters = scored_files.find_references([references], task)
    scored_files.check_raters(list(cases), raters)
    found: dict[str, dict[str, list[float]]] = {"dice": {}, "ged": {}}
    for case, predicted in progress(cases.items(), len(cases), "scoring"):
        mask, grid = scored_files.read_labels(predicted.files["mask"][0], task)
        members = scored_files.read_members(predicted, task, mask.shape)
        rated = scored_files.read_references(case, raters, task, mask.shape, grid)
        for name, ensemble in ensembles(members).items():
            for metric, value in zip(
                found, score(ensemble, list(rated.values()), task), strict=True
            ):
                found[metric].setdefault(name, []).append(value)
    return found


def main(argv: list[str]) -> None:
    """Prints and writes."""
    del argv
    found = measure(Path(_PREDICTIONS.value), Path(_REFERENCES.value))
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for metric, values in found.items():
        pairs, even, odd = (np.array(values[name]) for name in ("pairs", "even", "odd"))
        values["difference"] = (pairs - (even + odd) / 2).tolist()
        rows[metric] = {name: vars(aggregate.summarize(one)) for name, one in values.items()}
        for name, summary in rows[metric].items():
            low, high = summary["low"], summary["high"]
            print(f"{metric:5}{name:11}{summary['mean']:+.4f} [{low:+.4f}, {high:+.4f}]")
    if _OUTPUT.value:
        run = atomic.read_json(Path(_PREDICTIONS.value) / "run.json")
        how = {"checkpoint": run["checkpoint"], "sampling": run["sampling"]}
        write(_OUTPUT.value, **how, scores=rows)


if __name__ == "__main__":
    # Here, so that tests can import this beside another benchmark with flags of the same names.
    _PREDICTIONS = flags.DEFINE_string("predictions", None, "Folder of sample.py, with members.")
    _REFERENCES = flags.DEFINE_string("references", None, "Folder of masks, as of evaluate.py.")
    _OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
    flags.mark_flags_as_required(["predictions", "references"])
    cli.run(main)
