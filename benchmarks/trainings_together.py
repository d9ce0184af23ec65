"""What several trainings are worth as one ensemble, beside each of them alone.

    python -m benchmarks.trainings_together --checkpoint=RUN0 --checkpoint=RUN1 --checkpoint=RUN2 \
        --cases=FOLDER --workdir=DIR --output=FILE

FOLDER is what `python -m data` writes. Of M trainings and ensembles of n members it samples and
scores

    alone                n members of each training, and the mean of the scores
    alone, more members  M n members of each, as many as the trainings have together
    together, as many    n / M members (rounded up) of each, as many as one has alone
    together             n members of each

and the condition models in the same way (--steps=0). Differences are those from "alone" on the same
cases, with intervals over trainings and cases. Whatever is finished in DIR is not done again.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks.commands import sample_and_score, values_of_cases
from benchmarks.provenance import write
from benchmarks.quality_table import paired_difference
from medsegdiff_jax import atomic, cli
from medsegdiff_jax.checkpoint import load_model
from medsegdiff_jax.groups import read_groups
from medsegdiff_jax.types import InputError

METRICS = ("dice", "ged", "diversity")


def settings(members: int, trainings: int) -> dict[str, tuple[bool, list[str]]]:
    """Row -> (whether the trainings are one ensemble, flags of sample.py)."""
    few = math.ceil(members / trainings)
    return {
        "alone": (False, [f"--members={members}"]),
        "alone, more members": (False, [f"--members={trainings * members}"]),
        "together, as many": (True, [f"--members={few}"]),
        "together": (True, [f"--members={members}"]),
        "condition model alone": (False, ["--steps=0"]),
        "condition model together": (True, ["--steps=0"]),
    }


def score(checkpoints: list[str], cases: Path, sampling: list[str], folder: Path) -> dict[str, Any]:
    """Samples and scores one ensemble; its members, seconds, calibration and values of cases."""
    results = folder / "score"
    if not (results / "metrics.json").exists():
        sample_and_score(checkpoints, cases, sampling, folder)
    done = atomic.read_json(folder / "run.json")["cases"].values()
    doubt = atomic.read_json(results / "metrics.json")["uncertainty"]
    at_border = [one["border"]["ece"] for one in doubt["calibration"].values()]
    return {
        "members": max(case["members"] for case in done),
        "seconds": float(np.median([case["seconds"] for case in done])),
        "border_ece": float(np.mean(at_border)),
        **{name: values_of_cases(results / "per_case.csv", name) for name in METRICS},
    }


def summarize(
    name: str, ensembles: list[dict[str, Any]], first: list[dict[str, Any]], groups: dict[str, str]
) -> dict[str, Any]:
    """Means over ensembles and cases, and differences from the `first` row, a training each."""
    cases = list(ensembles[0]["dice"])

    def table(ones: list[dict[str, Any]], metric: str) -> np.ndarray:
        return np.array([[one[metric][case] for case in cases] for one in ones])

    members, labels = ensembles[0]["members"], [groups.get(case, case) for case in cases]
    ged, diversity = table(ensembles, "ged"), table(ensembles, "diversity")
    row = {
        "name": name,
        "members": members,
        "dice": float(table(ensembles, "dice").mean()),
        "ged": float(ged.mean()),
        # As in `quality_table`: the pairs of a sample with itself favour many members.
        "ged_without_self_pairs": float((ged - diversity / members).mean()),
        "diversity": float(diversity.mean()),
        "border_ece": float(np.mean([one["border_ece"] for one in ensembles])),
        "seconds_per_case": float(np.mean([one["seconds"] for one in ensembles])),
    }
    for metric in ("dice", "ged") if ensembles is not first else ():
        both = np.broadcast_arrays(table(ensembles, metric), table(first, metric))
        row[f"{metric}_minus_alone"] = paired_difference(*both, labels)
    return row


def measure(checkpoints: list[str], cases: Path, work: Path) -> list[dict[str, Any]]:
    """All rows."""
    members = load_model(checkpoints[0]).config.sampling.members
    groups, rows, found = read_groups([cases], ()), [], {}
    for name, (together, sampling) in settings(members, len(checkpoints)).items():
        sets = [checkpoints] if together else [[one] for one in checkpoints]
        found[name] = [
            score(one, cases, sampling, work / f"{name.replace(',', '').replace(' ', '_')}_{index}")
            for index, one in enumerate(sets)
        ]
        alone = "condition model alone" if name.startswith("condition") else "alone"
        rows.append(summarize(name, found[name], found[alone], groups))
    return rows


def main(argv: list[str]) -> None:
    """Measures what is missing, prints and writes the rows."""
    del argv
    if len(_CHECKPOINT.value) < 2:
        raise InputError("--checkpoint: give it twice at least")
    work = Path(_WORKDIR.value).resolve()
    rows = measure(_CHECKPOINT.value, Path(_CASES.value).resolve(), work)
    for row in rows:
        print(
            f"{row['name']:26} {row['members']:3} members  Dice {row['dice']:.4f}  GED "
            f"{row['ged']:.4f} ({row['ged_without_self_pairs']:.4f} without self-pairs)  border "
            f"ECE {row['border_ece']:.4f}  {row['seconds_per_case']:.2f} s"
        )
        for metric in ("dice", "ged"):
            if f"{metric}_minus_alone" in row:
                mean, low, high = row[f"{metric}_minus_alone"]
                print(f"{'':26} {metric} minus alone {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    if _OUTPUT.value:
        weights = [load_model(one).description for one in _CHECKPOINT.value]
        write(_OUTPUT.value, trainings=weights, rows=rows)


if __name__ == "__main__":
    # Here, so that tests can import this beside another benchmark with flags of the same names.
    _CHECKPOINT = flags.DEFINE_multi_string("checkpoint", None, "Workdir of a training; repeat it.")
    _CASES = flags.DEFINE_string("cases", None, "Folder of images and masks, from python -m data.")
    _WORKDIR = flags.DEFINE_string("workdir", None, "Predictions and scores.")
    _OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
    flags.mark_flags_as_required(["checkpoint", "cases", "workdir"])
    cli.run(main)
