"""A folder of predictions against a folder of references: what `evaluate.py` does."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsegdiff_jax import (
    atomic,
    fusion,
    html_report,
    plots,
    scored_files,
    uncertainty_plots,
    uncertainty_scoring,
    worst_cases,
)
from medsegdiff_jax.groups import read_groups
from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.metrics.aggregate import CaseScore, Summary
from medsegdiff_jax.progress import progress
from medsegdiff_jax.scored_files import PredictedCase, Predictions
from medsegdiff_jax.types import InputError, Task, check_at_least, class_mask
from medsegdiff_jax.uncertainty_scoring import CaseUncertainty, Uncertainty
from medsegdiff_jax.version import __version__

CONVENTIONS = {
    "dice": "2 TP / (2 TP + FP + FN) per case and class",
    "iou": "TP / (TP + FP + FN) per case and class",
    "sensitivity": "TP / (TP + FN), recall",
    "precision": "TP / (TP + FP), positive predictive value",
    "hd95": "maximum of the two directed 95th percentiles of surface distances, in units of the "
    "spacing (mm for volumes); surface = mask minus its erosion by a cross, nothing beyond the "
    "border of the image or volume",
    "assd": "mean of all distances of both surfaces to the other",
    "nsd": "share of both surfaces within the tolerance of the other, surface Dice",
    "case": "a picture or a whole volume, never a slice",
    "empty_strict": "both masks empty: HD95 = ASSD = 0, all else 1; one empty: HD95 = ASSD = image "
    "diagonal, all else 0",
    "empty_ignore": "undefined values are left out of the means; n_valid counts the rest",
    "interval": "95% percentile bootstrap of the mean over cases, 10000 resamples; cases of one "
    "group in groups.csv of the references are drawn together",
    "raters": "several references per case, of those raters who have one, are fused: a lone class "
    "or a region is where at least half of them mark it (of two: their union); of exclusive "
    "classes the most frequent, at a tie the first, background before all",
}
_ALT = {
    "dice.png": "Plot: Dice of every case as a point, quartiles of each class as a box",
    "reliability.png": "Plot: frequency of the reference against the predicted probability",
    "members.png": "Plot: mean Dice of the vote of the saved members against their number",
    "risk_coverage.png": "Plot: mean error of the most certain cases against their share",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """All scores of a run.

    Attributes:
      scores: one per case and class.
      table: summary per class and metric.
      unscored: references without a prediction.
      groups: case -> its group; {} if each case is on its own.
      spacing: height and width of a pixel, which distances are measured in; for volumes, words.
      nsd_tolerance: of the NSD, in the same unit.
      policy: for empty masks.
      uncertainty: of members and probabilities, as far as they were saved, and of raters.
      folders: case -> the folder of its prediction.
      dice_of_folders: folder -> Dice of its cases, their mean over the classes; {} of one folder.
      run: what was scored: the folders of predictions, those of the references that were read, what
        these were fused to, and how the predictions were made.
      worst: pictures of the cases with the lowest Dice.
    """

    scores: list[CaseScore]
    table: dict[str, dict[str, Summary]]
    unscored: list[str]
    groups: dict[str, str]
    spacing: list[float] | str
    nsd_tolerance: float
    policy: str
    uncertainty: Uncertainty
    folders: dict[str, str]
    dice_of_folders: dict[str, Summary]
    run: dict[str, Any]
    worst: list[html_report.Figure]


def evaluate(
    predictions: Sequence[str | os.PathLike],
    references: Sequence[str | os.PathLike],
    spacing: Sequence[float] | None,
    policy: str,
    nsd_tolerance: float,
) -> Evaluation:
    """Scores every case that `run.json` of a folder of predictions lists.

    Args:
      predictions: folders written by sample.py, such as one of each fold; their cases are pooled.
      references: folders with masks/ or masks_<rater>/ (for volumes also labelsTs/ or labelsTr/),
        or of mask files themselves; their groups.csv, if there are any, say which cases belong
        together.
      spacing: height and width of a picture's pixel, distances come out in its unit; None for 1,
        and for volumes, whose files say it.
      policy: "strict" or "ignore", see `metrics.aggregate`.
      nsd_tolerance: distance at which surfaces still agree, in the unit of the spacing (volumes:
        mm).

    Raises:
      InputError: a missing, unreadable or misfitting file, an unknown policy, or a negative
        tolerance.
    """
    aggregate.check_policy(policy)  # before hours of scoring
    check_at_least("--nsd_tolerance", nsd_tolerance, 0)
    found = scored_files.read_predictions(predictions)
    task, files = found.task, found.cases
    if task.modalities and spacing is not None:
        raise InputError("--spacing: is for pictures; the files of volumes say their own")
    raters = scored_files.find_references(references, task)
    scored_files.check_raters(list(files), raters)
    groups = read_groups(references, files)
    scores: list[CaseScore] = []
    doubts: list[CaseUncertainty] = []
    for case, predicted in progress(files.items(), len(files), "scoring"):
        of_classes = _score_case(case, predicted, raters, task, spacing, nsd_tolerance, policy)
        for score, doubt in of_classes:
            scores.append(score)
            doubts.append(doubt)
    known = {stem for masks in raters.values() for stem in masks}
    unit = "of each volume, mm" if task.modalities else list(spacing or (1.0, 1.0))
    errors = [1 - score.values["dice"] for score in scores]
    return Evaluation(
        scores=scores,
        table=aggregate.table(scores, groups),
        unscored=sorted(known - set(files)),
        groups={case: groups[case] for case in files} if groups else {},
        spacing=unit,
        nsd_tolerance=nsd_tolerance,
        policy=policy,
        uncertainty=uncertainty_scoring.collect(doubts, errors, groups),
        folders={case: one.folder for case, one in files.items()},
        dice_of_folders=_dice_of_folders(scores, files, groups),
        run=_what_was_scored(found, raters),
        worst=[
            _picture(score, files[score.case], raters, task) for score in worst_cases.choose(scores)
        ],
    )


def _dice_of_folders(
    scores: Sequence[CaseScore],
    cases: Mapping[str, PredictedCase],
    groups: Mapping[str, str],
) -> dict[str, Summary]:
    """See `Evaluation.dice_of_folders`."""
    found: dict[str, dict[str, float]] = {}
    for case, means in aggregate.mean_over_classes(scores).items():
        found.setdefault(cases[case].folder, {})[case] = means["dice"]
    if len(found) == 1:
        return {}
    return {
        folder: aggregate.summarize(
            list(dice.values()), [groups[case] for case in dice] if groups else None
        )
        for folder, dice in found.items()
    }


def _what_was_scored(
    predictions: Predictions, raters: dict[str, dict[str, Path]]
) -> dict[str, Any]:
    """See `Evaluation.run`."""
    references = {path.parent for masks in raters.values() for path in masks.values()}
    counts = {sum(case in masks for masks in raters.values()) for case in predictions.cases}
    return {
        "predictions": list(dict.fromkeys(one.folder for one in predictions.cases.values())),
        "references": sorted(map(str, references)),
        "compared with": _fused(min(counts), max(counts), predictions.task),
        **predictions.made,
    }


def _fused(fewest: int, most: int, task: Task) -> str:
    """What `fusion.majority` makes of a case's raters, of whom there are so many, in words."""
    if most == 1:
        return "one annotation per case"
    raters = f"{most} raters" if fewest == most else f"{fewest} to {most} raters"
    if task.one_hot:
        return f"the most frequent class of {raters}"
    return f"the union of {raters}" if most == 2 else f"what at least half of {raters} mark"


def check_output(output: str | os.PathLike, *sources: str | os.PathLike) -> None:
    """Looks at the folder of a report before hours of scoring.

    Raises:
      InputError: it is a file, or one of the folders that are read, where plots could replace masks
        and would count as references the next time.
    """
    folder = Path(output).resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder} is no folder")
    if folder in [Path(source).resolve() for source in sources]:
        raise InputError(f"--output: {folder} is read, too; give the report its own folder")


def _score_case(
    case: str,
    predicted: PredictedCase,
    raters: dict[str, dict[str, Path]],
    task: Task,
    spacing: Sequence[float] | None,
    nsd_tolerance: float,
    policy: str,
) -> Iterator[tuple[CaseScore, CaseUncertainty]]:
    """The scores of each class of a case."""
    prediction, grid = scored_files.read_labels(predicted.files["mask"][0], task)
    shape = prediction.shape
    rated = scored_files.read_references(case, raters, task, shape, grid)
    reference = fusion.majority(list(rated.values()), task)
    members = scored_files.read_members(predicted, task, shape)
    case_spacing = grid.spacing if grid else spacing or (1.0, 1.0)
    first = uncertainty_scoring.dice_of_first(members, reference, task)
    for index, class_name in enumerate(task.classes):
        masks = [class_mask(labels, task, index) for labels in (prediction, reference)]
        doubt = uncertainty_scoring.score_case(
            case,
            class_name,
            # One by one: of many members in 3D, a byte per voxel each is most of the memory.
            samples=(class_mask(one, task, index) for one in members) if members else None,
            probability=scored_files.read_probability(predicted, task, index, shape),
            raters={name: class_mask(labels, task, index) for name, labels in rated.items()},
            reference=masks[1],
            spacing=case_spacing,
            first=first[index],
            policy=policy,
        )
        score = aggregate.score_case(case, class_name, *masks, case_spacing, nsd_tolerance, policy)
        yield score, doubt


def write_report(evaluation: Evaluation, output: str | os.PathLike) -> list[str]:
    """Writes report.html, metrics.json, per_case.csv, dice.png and the plots that have data.

    Returns:
      names of the files in `output`.
    """
    folder, doubt = Path(output), evaluation.uncertainty
    folder.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {
        "version": __version__,
        "run": evaluation.run,
        "spacing": evaluation.spacing,
        "nsd_tolerance": evaluation.nsd_tolerance,
        "empty_mask_policy": evaluation.policy,
        "conventions": CONVENTIONS | (uncertainty_scoring.CONVENTIONS if doubt else {}),
        "references_without_prediction": evaluation.unscored,
        "groups": len(set(evaluation.groups.values())) or None,
        "classes": aggregate.as_dicts(evaluation.table),
    }
    several = evaluation.dice_of_folders
    if several:
        rows_of_folders = {folder: {"dice": dice} for folder, dice in several.items()}
        summary["folders"] = aggregate.as_dicts(rows_of_folders)
    if doubt:
        summary["uncertainty"] = uncertainty_scoring.to_json(doubt)
    raters = dict.fromkeys(rater for row in doubt.rater_dice.values() for rater in row)
    rows = [
        {
            "case": score.case,
            "class": score.class_name,
            **({"predictions": evaluation.folders[score.case]} if several else {}),
            **({"group": evaluation.groups[score.case]} if evaluation.groups else {}),
            **score.values,
            "prediction_empty": int(score.prediction_empty),
            "reference_empty": int(score.reference_empty),
            **case.values,
            **{f"dice_of_{rater}": case.rater_dice.get(rater, math.nan) for rater in raters},
        }
        for score, case in zip(evaluation.scores, doubt.cases, strict=True)
    ]
    atomic.write_csv(folder / "per_case.csv", rows)
    atomic.write_json(folder / "metrics.json", summary)
    plots = _write_plots(folder, rows, doubt)
    html_report.write(
        folder / "report.html", summary, rows, plots, evaluation.worst, worst_cases.LEGEND
    )
    return ["report.html", "metrics.json", "per_case.csv", *(Path(p.png).name for p in plots)]


def _write_plots(
    folder: Path, rows: Sequence[dict[str, Any]], doubt: Uncertainty
) -> list[html_report.Figure]:
    """The plots for which there are data, as files and for the report."""
    per_class: dict[str, list[float]] = {}
    for row in rows:
        per_class.setdefault(row["class"], []).append(row["dice"])
    dice = {name: np.array(values) for name, values in per_class.items()}
    wanted = [("Dice", "dice.png", plots.write_dice_plot, dice)]
    if doubt.calibration:
        write = uncertainty_plots.write_reliability
        wanted.append(("Reliability", "reliability.png", write, doubt.calibration))
    if doubt.ranking:
        write = uncertainty_plots.write_risk_coverage
        wanted.append(("Risk and coverage", "risk_coverage.png", write, doubt.ranking))
    if max(map(len, doubt.dice_of_first.values()), default=0) > 1:
        write = uncertainty_plots.write_members
        wanted.append(("Dice and members", "members.png", write, doubt.dice_of_first))
    for _, name, write, values in wanted:
        write(folder / name, values)
    return [html_report.Figure(title, folder / name, _ALT[name]) for title, name, *_ in wanted]


def format_table(evaluation: Evaluation) -> str:
    """A line per class: mean [95% interval] of some metrics, and the number of cases.

    Where values of some cases are left out, n says of how many the mean is.
    """
    width = max(len(name) for name in evaluation.table)
    lines = [f"{'class':{width}}  {'Dice':24}  {'IoU':24}  {'HD95':24}  cases"]
    for name, row in evaluation.table.items():
        cells = [_cell(row[metric]) for metric in ("dice", "iou", "hd95")]
        line = f"{name:{width}}  " + "  ".join(f"{cell:24}" for cell in cells)
        lines.append(f"{line}  {row['dice'].n_cases}")
    return "\n".join(lines)


def format_folders(evaluation: Evaluation) -> str:
    """A line per folder of predictions, if there are several: the Dice of its cases."""
    rows = evaluation.dice_of_folders.items()
    return "\n".join(f"{folder}: Dice {_cell(dice)} of {dice.n_cases}" for folder, dice in rows)


def _cell(row: Summary) -> str:
    count = "" if row.n_valid == row.n_cases else f" n={row.n_valid}"
    return f"{row.mean:.4f} [{row.low:.4f}, {row.high:.4f}]{count}"


def _picture(
    score: CaseScore,
    predicted: PredictedCase,
    raters: dict[str, dict[str, Path]],
    task: Task,
) -> html_report.Figure:
    """A scored case with its image, if that is still where run.json says."""
    prediction, grid = scored_files.read_labels(predicted.files["mask"][0], task)
    rated = scored_files.read_references(score.case, raters, task, prediction.shape, grid)
    return worst_cases.picture(
        score,
        prediction,
        fusion.majority(list(rated.values()), task),
        task,
        grid,
        predicted.plane,
        predicted.inputs,
        next(iter(predicted.files.get("overlay", ())), None),
    )
