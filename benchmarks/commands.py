"""The commands of the README, run one after the other, and what they have written."""

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.provenance import ROOT
from medsegdiff_jax.types import InputError


def command(*words: str) -> None:
    """Runs one of the project's commands from its root.

    Raises:
      InputError: it failed.
    """
    print("$ python", *words, flush=True)
    if subprocess.run([sys.executable, *words], cwd=ROOT).returncode:
        raise InputError(f"{words[0]} failed, see above; the same command goes on from there")


def sample_and_score(
    checkpoints: Sequence[str | Path], cases: Path, sampling: Sequence[str], predictions: Path
) -> None:
    """Segments a folder of `python -m data`, and scores that in `predictions`/score.

    Raises:
      InputError: a command failed.
    """
    models = [f"--checkpoint={one}" for one in checkpoints]
    command("sample.py", *models, f"--input={cases}", f"--output={predictions}",
            "--save=mask,probability,uncertainty,members", *sampling)  # fmt: skip
    command("evaluate.py", f"--predictions={predictions}", f"--references={cases}",
            f"--output={predictions / 'score'}")  # fmt: skip


def values_of_cases(path: Path, column: str) -> dict[str, float]:
    """Case -> its value in a column of per_case.csv, mean over the classes, to five digits."""
    found: dict[str, list[float]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            found.setdefault(row["case"], []).append(float(row[column]))
    return {case: round(float(np.mean(values)), 5) for case, values in found.items()}
