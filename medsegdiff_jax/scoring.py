"""A folder of predictions against a folder of references: what `evaluate.py` does."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsegdiff_jax import (
    fusion,
    imaging,
    report,
    uncertainty_plots,
    uncertainty_scoring,
    volumes,
)
from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.metrics.aggregate import CaseScore, Summary
from medsegdiff_jax.progress import progress
from medsegdiff_jax.types import InputError, Task, class_mask
from medsegdiff_jax.uncertainty_scoring import CaseUncertainty, Uncertainty
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


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All scores of a run.

    Attributes:
      scores: one per case and class, before the empty-mask policy.
      table: summary per class and metric.
      unscored: references without a prediction.
      spacing: height and width of a pixel, which HD95 is measured in; for volumes, words.
      uncertainty: of members and probabilities, as far as they were saved, and of raters.
    """

    scores: list[CaseScore]
    table: dict[str, dict[str, Summary]]
    unscored: list[str]
    spacing: list[float] | str
    uncertainty: Uncertainty


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
    task, files = _read_run(folder)
    if task.modalities and spacing is not None:
        raise InputError("--spacing: is for pictures; the files of volumes say their own")
    raters = _find_references(Path(references), task)
    scores: list[CaseScore] = []
    doubts: list[CaseUncertainty] = []
    for case, names in progress(files.items(), len(files), "scoring"):
        prediction, grid = _read_labels(folder / names["mask"][0], task)
        rated = _read_references(case, raters, task, prediction.shape, grid)
        reference = fusion.majority(list(rated.values()), task)
        members = _read_members(folder, names, task, prediction.shape)
        case_spacing = grid.spacing if grid else spacing or (1.0, 1.0)
        for index, class_name in enumerate(task.classes):
            masks = [class_mask(labels, task, index) for labels in (prediction, reference)]
            scores.append(aggregate.score_case(case, class_name, *masks, case_spacing))
            doubt = uncertainty_scoring.score_case(
                case,
                class_name,
                samples=[class_mask(labels, task, index) for labels in members] or None,
                probability=_read_probability(folder, names, task, index, prediction.shape),
                raters={name: class_mask(labels, task, index) for name, labels in rated.items()},
                reference=masks[1],
                spacing=case_spacing,
            )
            doubts.append(doubt)
    known = {stem for masks in raters.values() for stem in masks}
    unit = "of each volume, mm" if task.modalities else list(spacing or (1.0, 1.0))
    errors = [1 - aggregate.apply_policy(score, policy)["dice"] for score in scores]
    return Evaluation(
        scores=scores,
        table=aggregate.table(scores, policy),
        unscored=sorted(known - set(files)),
        spacing=unit,
        uncertainty=uncertainty_scoring.collect(doubts, errors, policy),
    )


def write_report(evaluation: Evaluation, output: str | os.PathLike, policy: str) -> list[str]:
    """Writes metrics.json, per_case.csv, dice.png and the plots for which there are data.

    Returns:
      names of the files in `output`.
    """
    folder, doubt = Path(output), evaluation.uncertainty
    folder.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {
        "version": __version__,
        "spacing": evaluation.spacing,
        "empty_mask_policy": policy,
        "conventions": CONVENTIONS,
        "references_without_prediction": evaluation.unscored,
        "classes": {
            name: {metric: dataclasses.asdict(value) for metric, value in row.items()}
            for name, row in evaluation.table.items()
        },
    }
    if doubt:
        summary["uncertainty"] = uncertainty_scoring.to_json(doubt)
    rows = [
        {
            "case": score.case,
            "class": score.class_name,
            **aggregate.apply_policy(score, policy),
            "prediction_empty": int(score.prediction_empty),
            "reference_empty": int(score.reference_empty),
            **case.values,
            **{f"dice_of_{rater}": dice for rater, dice in case.rater_dice.items()},
        }
        for score, case in zip(evaluation.scores, doubt.cases, strict=True)
    ]
    per_class: dict[str, list[float]] = {}
    for row in rows:
        per_class.setdefault(row["class"], []).append(row["dice"])
    report.write_csv(folder / "per_case.csv", rows)
    report.write_dice_plot(
        folder / "dice.png", {name: np.array(values) for name, values in per_class.items()}
    )
    report.write_json(folder / "metrics.json", summary)
    written = ["metrics.json", "per_case.csv", "dice.png"]
    if doubt.calibration:
        uncertainty_plots.write_reliability(folder / "reliability.png", doubt.calibration)
        written.append("reliability.png")
    if doubt.ranking:
        uncertainty_plots.write_risk_coverage(folder / "risk_coverage.png", doubt.ranking)
        written.append("risk_coverage.png")
    return written


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


def _read_run(folder: Path) -> tuple[Task, dict[str, dict[str, list[str]]]]:
    """The task, and case -> what was saved -> its files, of a folder of predictions."""
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text())
        task = Task.from_json(run["task"])
        files = {
            case: {
                what: [names] if isinstance(names, str) else list(names)
                for what, names in entry["files"].items()
            }
            for case, entry in run["cases"].items()
        }
        masks = [entry["mask"] for entry in files.values()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read; --predictions is a folder of sample.py") from (
            error
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not the run.json of a run that saved masks") from error
    if not masks:
        raise InputError(f"{path}: lists no finished case")
    return task, files


def _find_references(root: Path, task: Task) -> dict[str, dict[str, Path]]:
    """Name of each rater -> case -> mask file."""
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
        raters = {"reference": merged}
    else:
        raters = {folder.name.removeprefix("masks_"): _masks_in(folder, task) for folder in folders}
    if not any(raters.values()):
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


def _read_labels(
    path: Path, task: Task, *, foreign: bool = False
) -> tuple[np.ndarray, volumes.Grid | None]:
    """Labels of a picture or, with its grid, of a volume.

    Args:
      path: its file.
      task: InputError, naming the file, if it holds labels that the task does not know.
      foreign: not written by sample.py.
    """
    labels, grid = (
        volumes.read_labels(path) if task.modalities else (imaging.read_labels(path), None)
    )
    present = np.unique(labels)
    if foreign and len(task.classes) == 1 and len(present[present != 0]) == 1:
        # Whether a lone class is written as 1 or 255 is a matter of taste.
        return np.where(labels != 0, task.label_values[0], 0), grid
    try:
        imaging.labels_to_mask(present[None], task)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return labels, grid


def _read_references(
    case: str,
    raters: dict[str, dict[str, Path]],
    task: Task,
    shape: tuple[int, ...],
    grid: volumes.Grid | None,
) -> dict[str, np.ndarray]:
    """Labels of a case by each rater, in the shape of the prediction."""
    found = {}
    for rater, masks in raters.items():
        if case not in masks:
            raise InputError(f"{case}: has a prediction but no reference of every rater")
        labels, own = _read_labels(masks[case], task, foreign=True)
        _check_shape(masks[case], labels.shape, shape)
        if grid:
            volumes.check_grids(grid, own, Path(f"the prediction of {case}"), masks[case])
        found[rater] = labels
    return found


def _read_members(
    folder: Path, names: dict[str, list[str]], task: Task, shape: tuple[int, ...]
) -> list[np.ndarray]:
    """Labels of every saved member, in the smallest type that holds them; [] without any."""
    small = np.min_scalar_type(sum(task.label_values))
    members = []
    for name in names.get("members", []):
        labels, _ = _read_labels(folder / name, task)
        _check_shape(folder / name, labels.shape, shape)
        members.append(labels.astype(small))
    return members


def _read_probability(
    folder: Path, names: dict[str, list[str]], task: Task, index: int, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Saved probability of the class with this index, float32 in [0, 1]; None without any."""
    if "probability" not in names:
        return None
    if len(names["probability"]) != len(task.classes):
        raise InputError(f"{folder / 'run.json'}: not one probability for each class")
    path = folder / names["probability"][index]
    if task.modalities:
        probability = np.clip(volumes.read_image([path], 1)[0][..., 0], 0, 1)
    else:
        probability = imaging.read_labels(path) / np.float32(255)
    _check_shape(path, probability.shape, shape)
    return probability


def _check_shape(path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        order = 1 if len(shape) == 3 else -1  # pictures are spoken of as width x height
        sizes = ["x".join(map(str, one[::order])) for one in (shape, expected)]
        raise InputError(f"{path}: is {sizes[0]}, its prediction {sizes[1]}")
