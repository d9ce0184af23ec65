"""A folder of predictions against a folder of references: what `evaluate.py` does."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsegdiff_jax import fusion, html_report, imaging, report, volumes, worst_cases
from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.metrics.aggregate import CaseScore, Summary
from medsegdiff_jax.progress import progress
from medsegdiff_jax.types import InputError, Task, class_mask
from medsegdiff_jax.version import __version__

CONVENTIONS = {
    "dice": "2 |P n R| / (|P| + |R|) per case and class",
    "iou": "|P n R| / |P u R| per case and class",
    "hd95": "maximum of the two directed 95th percentiles of surface distances, in units of the "
    "spacing (mm for volumes); surface = mask minus its erosion by a cross, nothing beyond the "
    "border of the image or volume",
    "case": "a picture or a whole volume, never a slice",
    "empty_strict": "both masks empty: Dice = IoU = 1, HD95 = 0; one empty: Dice = IoU = 0, HD95 = "
    "image diagonal",
    "empty_ignore": "undefined values are left out of the means; n_valid counts the rest",
    "interval": "95% percentile bootstrap of the mean over cases, 10000 resamples",
    "raters": "several references per case are fused to their majority",
}
_DICE_ALT = "Plot: Dice of every case as a point, quartiles of each class as a box"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All scores of a run.

    Attributes:
      scores: one per case and class, before the empty-mask policy.
      table: summary per class and metric.
      unscored: references without a prediction.
      spacing: height and width of a pixel, which HD95 is measured in; for volumes, words.
      run: what was scored: the folder of predictions and how they were made.
      worst: pictures of the cases with the lowest Dice.
    """

    scores: list[CaseScore]
    table: dict[str, dict[str, Summary]]
    unscored: list[str]
    spacing: list[float] | str
    run: dict[str, Any]
    worst: list[html_report.Figure]


def evaluate(
    predictions: str | os.PathLike,
    references: str | os.PathLike,
    spacing: Sequence[float] | None,
    policy: str,
) -> Evaluation:
    """Scores every case that `run.json` of `predictions` lists.

    Args:
      predictions: folder written by sample.py.
      references: folder with masks/ or masks_<rater>/ (for volumes also labelsTs/ or labelsTr/), or
        of mask files themselves.
      spacing: height and width of a picture's pixel, HD95 comes out in its unit; None for 1, and
        for volumes, whose files say it.
      policy: "strict" or "ignore", see `metrics.aggregate`.

    Raises:
      InputError: a missing, unreadable or misfitting file, or an unknown policy.
    """
    folder = Path(predictions)
    run, task, files = _read_run(folder)
    if task.modalities and spacing is not None:
        raise InputError("--spacing: is for pictures; the files of volumes say their own")
    raters = _find_references(Path(references), task)
    scores: list[CaseScore] = []
    for case, name in progress(files.items(), len(files), "scoring"):
        read = _read_volume if task.modalities else _read_picture
        prediction, grid = read(folder / name)
        _check_labels(folder / name, prediction, task)
        reference = _reference(case, raters, task, prediction.shape, grid)
        case_spacing = grid.spacing if grid else spacing or (1.0, 1.0)
        for index, class_name in enumerate(task.classes):
            masks = (class_mask(labels, task, index) for labels in (prediction, reference))
            scores.append(aggregate.score_case(case, class_name, *masks, case_spacing))
    known = {stem for masks in raters for stem in masks}
    unit = "of each volume, mm" if task.modalities else list(spacing or (1.0, 1.0))
    table = aggregate.table(scores, policy)
    worst = [
        _picture(score, policy, folder, run, raters, task)
        for score in worst_cases.choose(scores, policy)
    ]
    made = {key: run[key] for key in ("checkpoint", "checkpoint_sha256", "sampling") if key in run}
    described = {"predictions": str(folder), **made}
    return Evaluation(scores, table, sorted(known - set(files)), unit, described, worst)


def write_report(evaluation: Evaluation, output: str | os.PathLike, policy: str) -> None:
    """Writes metrics.json, per_case.csv, dice.png and report.html to `output`."""
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {
        "version": __version__,
        "run": evaluation.run,
        "spacing": evaluation.spacing,
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
    plots = [html_report.Figure("Dice", folder / "dice.png", _DICE_ALT)]
    html_report.write(
        folder / "report.html", summary, rows, plots, evaluation.worst, worst_cases.LEGEND
    )


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


def _read_run(folder: Path) -> tuple[dict[str, Any], Task, dict[str, str]]:
    """run.json of a folder of predictions, its task, and case -> mask file."""
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
    return run, task, files


def _picture(
    score: CaseScore,
    policy: str,
    folder: Path,
    run: dict[str, Any],
    raters: list[dict[str, Path]],
    task: Task,
) -> html_report.Figure:
    """A scored case with its image, if that is still where run.json says."""
    entry = run["cases"][score.case]
    read = _read_volume if task.modalities else _read_picture
    prediction, grid = read(folder / entry["files"]["mask"])
    return worst_cases.picture(
        score,
        policy,
        prediction,
        _reference(score.case, raters, task, prediction.shape, grid),
        task,
        grid,
        run.get("config", {}).get("data", {}).get("plane", "axial"),
        [folder / name for name in entry.get("inputs", ())],
        folder / entry["files"]["overlay"] if "overlay" in entry["files"] else None,
    )


def _find_references(root: Path, task: Task) -> list[dict[str, Path]]:
    """Case -> mask file, for each rater."""
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    folders = sorted(path for path in root.glob("masks_*") if path.is_dir())
    single = ("masks", "labelsTs", "labelsTr") if task.modalities else ("masks",)
    if not folders:
        # A Decathlon folder may keep the labels of its test cases apart.
        folders = [root / name for name in single if (root / name).is_dir()] or [root]
        if not task.exclusive and folders[0].name.startswith("labelsT"):
            raise InputError(
                f"{folders[0]}: holds the labels of a dataset, not the overlapping regions that "
                "the model learnt; write these with python -m data and score against them"
            )
        merged: dict[str, Path] = {}
        for folder in reversed(folders):
            merged |= _masks_in(folder, task)
        raters = [merged]
    else:
        raters = [_masks_in(folder, task) for folder in folders]
    if not any(raters):
        raise InputError(f"{root}: holds no mask")
    return raters


def _masks_in(folder: Path, task: Task) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        wanted = volumes.SUFFIXES if task.modalities else imaging.IMAGE_SUFFIXES
        if path.name.startswith(".") or not path.name.lower().endswith(wanted):
            continue
        stem = volumes.stem(path) if task.modalities else path.stem
        if stem in found:
            raise InputError(f"{folder}: {found[stem].name} and {path.name} share a stem")
        found[stem] = path
    return found


def _read_picture(path: Path) -> tuple[np.ndarray, None]:
    return imaging.read_labels(path), None


def _read_volume(path: Path) -> tuple[np.ndarray, volumes.Grid]:
    return volumes.read_labels(path)


def _reference(
    case: str,
    raters: list[dict[str, Path]],
    task: Task,
    shape: tuple[int, ...],
    grid: volumes.Grid | None,
) -> np.ndarray:
    """The majority of the raters' labels of a case, in the shape of the prediction."""
    found = []
    for masks_of_rater in raters:
        if case not in masks_of_rater:
            raise InputError(f"{case}: has a prediction but no reference of every rater")
        path = masks_of_rater[case]
        labels, own = (_read_volume if grid else _read_picture)(path)
        if labels.shape != shape:
            order = 1 if grid else -1  # pictures are spoken of as width x height
            sizes = ["x".join(map(str, one[::order])) for one in (labels.shape, shape)]
            raise InputError(f"{path}: is {sizes[0]}, its prediction {sizes[1]}")
        if grid:
            volumes.check_grids(grid, own, Path(f"the prediction of {case}"), path)
        if len(task.classes) == 1 and len(np.unique(labels[labels != 0])) == 1:
            # Whether a lone class is written as 1 or 255 is a matter of taste.
            labels = np.where(labels != 0, task.label_values[0], 0)
        _check_labels(path, labels, task)
        found.append(labels)
    return fusion.majority(found, task)


def _check_labels(path: Path, labels: np.ndarray, task: Task) -> None:
    """Raises InputError, naming the file, if it holds labels that the task does not know."""
    try:
        imaging.labels_to_mask(np.unique(labels)[None], task)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
