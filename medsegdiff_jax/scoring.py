"""A folder of predictions against a folder of references: what `evaluate.py` does."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsegdiff_jax import fusion, imaging, report
from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.metrics.aggregate import CaseScore, Summary
from medsegdiff_jax.types import InputError, Task
from medsegdiff_jax.version import __version__

CONVENTIONS = {
    "dice": "2 |P n R| / (|P| + |R|) per case and class",
    "iou": "|P n R| / |P u R| per case and class",
    "hd95": "maximum of the two directed 95th percentiles of surface distances, in units of the "
    "spacing; surface = mask minus its erosion by a cross, the image border counts as outside",
    "empty_strict": "both masks empty: Dice = IoU = 1, HD95 = 0; one empty: Dice = IoU = 0, HD95 = "
    "image diagonal",
    "empty_ignore": "undefined values are left out of the means; n_valid counts the rest",
    "interval": "95% percentile bootstrap of the mean over cases, 10000 resamples",
    "raters": "several references per case are fused to their majority",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All scores of a run.

    Attributes:
      scores: one per case and class, before the empty-mask policy.
      table: summary per class and metric.
      unscored: references without a prediction.
    """

    scores: list[CaseScore]
    table: dict[str, dict[str, Summary]]
    unscored: list[str]


def evaluate(
    predictions: str | os.PathLike,
    references: str | os.PathLike,
    spacing: Sequence[float],
    policy: str,
) -> Evaluation:
    """Scores every case that `run.json` of `predictions` lists.

    Args:
      predictions: folder written by sample.py.
      references: folder with masks/ or masks_<rater>/, or of mask files themselves.
      spacing: pixel height and width; HD95 comes out in its unit.
      policy: "strict" or "ignore", see `metrics.aggregate`.

    Raises:
      InputError: a missing, unreadable or misfitting file, or an unknown policy.
    """
    folder = Path(predictions)
    task, files = _read_run(folder)
    raters = _find_references(Path(references))
    scores: list[CaseScore] = []
    for case, name in files.items():
        prediction = _mask(folder / name, imaging.read_labels(folder / name), task)
        reference = _reference(case, raters, task, prediction.shape)
        first = int(task.one_hot)
        for index, class_name in enumerate(task.classes):
            channel = index + first
            scores.append(
                aggregate.score_case(
                    case, class_name, prediction[..., channel], reference[..., channel], spacing
                )
            )
    known = {stem for masks in raters for stem in masks}
    return Evaluation(scores, aggregate.table(scores, policy), sorted(known - set(files)))


def write_report(
    evaluation: Evaluation, output: str | os.PathLike, spacing: Sequence[float], policy: str
) -> None:
    """Writes metrics.json, per_case.csv and dice.png to `output`."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {
        "version": __version__,
        "spacing": list(spacing),
        "empty_mask_policy": policy,
        "conventions": CONVENTIONS,
        "references_without_prediction": evaluation.unscored,
        "classes": {
            name: {metric: dataclasses.asdict(value) for metric, value in row.items()}
            for name, row in evaluation.table.items()
        },
    }
    rows = [
        {
            "case": score.case,
            "class": score.class_name,
            **aggregate.apply_policy(score, policy),
            "prediction_empty": int(score.prediction_empty),
            "reference_empty": int(score.reference_empty),
        }
        for score in evaluation.scores
    ]
    per_class: dict[str, list[float]] = {}
    for row in rows:
        per_class.setdefault(row["class"], []).append(row["dice"])
    report.write_csv(folder / "per_case.csv", rows)
    report.write_dice_plot(
        folder / "dice.png", {name: np.array(values) for name, values in per_class.items()}
    )
    report.write_json(folder / "metrics.json", summary)


def format_table(evaluation: Evaluation) -> str:
    """A line per class: mean [95% interval] of each metric, and the number of cases."""
    width = max(len(name) for name in evaluation.table)
    lines = [f"{'class':{width}}  {'Dice':24}  {'IoU':24}  {'HD95':24}  cases"]
    for name, row in evaluation.table.items():
        cells = [
            f"{row[metric].mean:.4f} [{row[metric].low:.4f}, {row[metric].high:.4f}]"
            for metric in aggregate.METRICS
        ]
        count = f"{row['dice'].n_valid}/{row['dice'].n_cases}"
        lines.append(f"{name:{width}}  " + "  ".join(f"{cell:24}" for cell in cells) + f"  {count}")
    return "\n".join(lines)


def _read_run(folder: Path) -> tuple[Task, dict[str, str]]:
    """The task, and case -> mask file, of a folder of predictions."""
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text())
        task = Task.from_json(run["task"])
        files = {case: entry["files"]["mask"] for case, entry in run["cases"].items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read; --predictions is a folder of sample.py") from (
            error
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is not the run.json of a run that saved masks") from error
    if not files:
        raise InputError(f"{path}: lists no finished case")
    return task, files


def _find_references(root: Path) -> list[dict[str, Path]]:
    """Stem -> mask file, for each rater."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    folders = sorted(path for path in root.glob("masks_*") if path.is_dir())
    if not folders:
        folders = [root / "masks" if (root / "masks").is_dir() else root]
    raters = [
        {
            path.stem: path
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in imaging.IMAGE_SUFFIXES
        }
        for folder in folders
    ]
    if not any(raters):
        raise InputError(f"{root}: holds no mask")
    return raters


def _reference(
    case: str, raters: list[dict[str, Path]], task: Task, shape: tuple[int, ...]
) -> np.ndarray:
    """The majority of the raters' masks of a case: {0, 1} [H, W, K]."""
    masks = []
    for masks_of_rater in raters:
        if case not in masks_of_rater:
            raise InputError(f"{case}: has a prediction but no reference of every rater")
        path = masks_of_rater[case]
        labels = imaging.read_labels(path)
        if labels.shape != shape[:2]:
            raise InputError(
                f"{path}: is {labels.shape[1]}x{labels.shape[0]}, "
                f"its prediction {shape[1]}x{shape[0]}"
            )
        if len(task.classes) == 1 and len(np.unique(labels[labels != 0])) == 1:
            # Whether a lone class is written as 1 or 255 is a matter of taste.
            labels = np.where(labels != 0, task.label_values[0], 0)
        masks.append(_mask(path, labels, task))
    return fusion.decide(np.mean(masks, axis=0), task)


def _mask(path: Path, labels: np.ndarray, task: Task) -> np.ndarray:
    """Labels of a file -> {0, 1} [H, W, K]; an error names the file."""
    try:
        return imaging.labels_to_mask(labels, task)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
