"""What evaluation says about uncertainty: of each case from its samples, of all cases together.

`score_case` turns the files of a case into a few numbers, `collect` those of all cases into what
the report shows. Which number means what is written in `CONVENTIONS` and `metrics`.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medsegdiff_jax import fusion, imaging, metrics
from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.metrics.aggregate import Summary
from medsegdiff_jax.metrics.calibration import BINS, BORDER_PIXELS, Calibration
from medsegdiff_jax.metrics.ranking import Ranking
from medsegdiff_jax.types import Task

_VOXELS = 1 << 17  # voxels whose votes are counted at once; bounds the memory

SAMPLE_METRICS = {
    "ged": "energy_distance",
    "matched_iou": "matched_iou",
    "max_dice": "max_dice",
    "sample_dice": "sample_dice",
    "diversity": "diversity",
    "interval_iou": "interval_iou",
    "volume_variation": "volume_variation",
}
RANKED = ("sample_dice", "volume_variation", "region_entropy")

CONVENTIONS = {
    "samples": "numbers from the members are against every rater's mask, not their majority; IoU = "
    "Dice = 1 for two empty masks, whatever the empty-mask policy",
    "ged": "squared generalised energy distance, d = 1 - IoU, all pairs, a mask with itself "
    "included; one rater: its own term is 0",
    "matched_iou": "mean IoU of the best pairing of samples and raters (Hungarian); both are "
    "repeated to their least common multiple",
    "max_dice": "mean over raters of the best sample's Dice; rises with the number of samples",
    "sample_dice": "mean Dice of pairs of different samples",
    "diversity": "mean 1 - IoU of pairs of different samples",
    "interval_iou": "inner over outer area of the samples' 95% interval; the name and formula are "
    "ours, for the confidence interval (CI) that the paper does not define; below 40 samples: "
    "intersection over union of all; falls with the number of samples",
    "volume_variation": "standard deviation (n - 1) of the samples' volumes over their mean; the "
    "slices of a scan are drawn from one noise, each by itself: it may be too low",
    "dice_of_first": "Dice against the majority of the raters of the vote of the first n members, "
    "n = 1, 2, ...; a case with fewer members keeps its last value",
    "region_entropy": "mean binary entropy in bits over pixels with p >= 0.5 or entropy >= 0.5",
    "calibration": "foreground probability of each class, as stored in 8 bits, against the share "
    "of the raters; each rater's pixel is an event, all cases pooled",
    "ece": f"{BINS} equally wide bins of the foreground probability, weighted by pixels",
    "brier": "mean of (p - y)^2 over events",
    "border": f"pixels whose nearest pixel across the border of the majority reference is at most "
    f"{BORDER_PIXELS} times the smallest pixel size away; none where that reference is empty",
    "ranking": "error = 1 - Dice of the fused mask under the empty-mask policy; cases in the order "
    "of 1 - sample_dice, volume_variation or region_entropy; risk = mean error of the k most "
    "certain cases, AURC = mean over k = 1..n, excess = AURC above the order by error, uninformed "
    "= mean error; ties count with their mean",
    "rater_dice": "Dice of each rater against the majority, which the rater is part of",
}


@dataclasses.dataclass(frozen=True)
class CaseUncertainty:
    """What one case and class says.

    Attributes:
      case: name of the case.
      class_name: name of the class.
      values: SAMPLE_METRICS where there are members, "region_entropy" where there is a probability.
      calibration: {"image", "border": sums over pixels} where there is a probability.
      rater_dice: {rater who annotated it: Dice against the majority}; {} with one rater. Of two
        empty masks it is what counts under the policy: 1, or NaN if they are left out.
      dice_of_first: Dice of the vote of the first n members, n = 1, 2, ..., of two empty masks the
        same; [] without members.
    """

    case: str
    class_name: str
    values: dict[str, float]
    calibration: dict[str, Calibration]
    rater_dice: dict[str, float]
    dice_of_first: list[float]


@dataclasses.dataclass(frozen=True)
class Uncertainty:
    """What all cases say together; each {class name: ...}, an empty one where nothing was saved.

    Attributes:
      cases: per case and class.
      table: {metric: Summary over cases}.
      calibration: {"image", "border": sums over the pixels of all cases}.
      ranking: {score: its ranking of the errors}; scores with fewer than two cases are left out.
      rater_dice: {rater: Summary over the cases that they annotated}.
      dice_of_first: Summary over cases for n = 1, 2, ... members.
    """

    cases: list[CaseUncertainty]
    table: dict[str, dict[str, Summary]]
    calibration: dict[str, dict[str, Calibration]]
    ranking: dict[str, dict[str, Ranking]]
    rater_dice: dict[str, dict[str, Summary]]
    dice_of_first: dict[str, list[Summary]]

    def __bool__(self) -> bool:
        """Whether there is anything to report."""
        return bool(self.table or self.rater_dice)


def dice_of_first(
    members: Sequence[np.ndarray], reference: np.ndarray, task: Task
) -> list[list[float]]:
    """Dice of the vote of the first n members, n = 1, 2, ... (figure 3 of the paper).

    Args:
      members: label maps [...] of one case.
      reference: label map [...].
      task: says which labels there are; `fusion.decide` makes the votes a mask.

    Returns:
      Per class one value per n, NaN where vote and reference are both empty; [] without members.
    """
    shared, marked = np.zeros((2, len(members), len(task.classes)))
    flat = [labels.reshape(-1) for labels in (reference, *members)]
    for start in range(0, flat[0].size, _VOXELS):
        own, *parts = (
            imaging.labels_to_mask(labels[start : start + _VOXELS], task) for labels in flat
        )
        votes = np.zeros(own.shape, np.float32)
        for n, part in enumerate(parts):
            votes += part
            decided = fusion.decide(votes / (n + 1), task)
            shared[n] += np.sum(decided & own, axis=0)[task.foreground]
            marked[n] += (np.sum(decided, axis=0) + np.sum(own, axis=0))[task.foreground]
    with np.errstate(invalid="ignore"):
        return (2 * shared / marked).T.tolist()


def score_case(
    case: str,
    class_name: str,
    *,
    samples: Iterable[np.ndarray] | None,
    probability: np.ndarray | None,
    raters: Mapping[str, np.ndarray],
    reference: np.ndarray,
    spacing: Sequence[float],
    first: Sequence[float],
    policy: str,
) -> CaseUncertainty:
    """All numbers of one case and class.

    Args:
      case: name of the case.
      class_name: name of the class.
      samples: masks [...] in {0, 1}, one per member, read once; None if they were not saved.
      probability: [...] of the class in [0, 1]; None if it was not saved.
      raters: name -> mask [...] in {0, 1}.
      reference: [...] the majority of the raters.
      spacing: pixel size along each axis.
      first: of `dice_of_first`, those of this class.
      policy: for empty masks, see `metrics.aggregate`.

    Raises:
      InputError: shapes that differ, values other than 0 and 1 in a mask, or an unknown policy.
    """
    values, sums = {}, {}
    if samples is not None:
        overlaps = metrics.set_overlaps(samples, raters.values())
        values = {name: getattr(overlaps, field) for name, field in SAMPLE_METRICS.items()}
    if probability is not None:
        values["region_entropy"] = metrics.region_entropy(probability)
        target = reference
        if len(raters) > 1:
            target = sum(mask.astype(np.float32) for mask in raters.values()) / len(raters)
        band = metrics.border_band(reference, spacing, BORDER_PIXELS * min(spacing))
        sums = {
            "image": metrics.measure_calibration(probability, target),
            "border": metrics.measure_calibration(probability, target, band),
        }
    empty = aggregate.dice_of_empty(policy)
    agreement = {}
    if len(raters) > 1:
        for name, mask in raters.items():
            agreement[name] = float(np.nan_to_num(metrics.dice(mask, reference), nan=empty))
    of_first = np.nan_to_num(np.array(first), nan=empty).tolist()
    return CaseUncertainty(case, class_name, values, sums, agreement, of_first)


def collect(
    cases: Sequence[CaseUncertainty],
    errors: Sequence[float],
    groups: Mapping[str, str] | None = None,
) -> Uncertainty:
    """Summaries over cases, class by class.

    Args:
      cases: all cases and classes.
      errors: 1 - Dice of the fused mask of each, NaN to leave it out of the ranking.
      groups: case -> its group, of all cases, for the intervals; None if each is on its own.
    """
    by_class: dict[str, list[CaseUncertainty]] = {}
    errors_of: dict[str, list[float]] = {}
    for one, error in zip(cases, errors, strict=True):
        by_class.setdefault(one.class_name, []).append(one)
        errors_of.setdefault(one.class_name, []).append(error)
    table, sums, ranking, agreement, first = {}, {}, {}, {}, {}
    for name, group in by_class.items():
        of_group = _groups_of(group, groups)
        columns = {metric: [one.values[metric] for one in group] for metric in group[0].values}
        table[name] = {
            metric: aggregate.summarize(column, of_group) for metric, column in columns.items()
        }
        sums[name] = {
            region: sum((one.calibration[region] for one in group[1:]), start)
            for region, start in group[0].calibration.items()
        }
        ranked = {
            score: metrics.rank_errors(_doubt(score, columns[score]), errors_of[name])
            for score in RANKED
            if score in columns
        }
        ranking[name] = {score: one for score, one in ranked.items() if one is not None}
        agreement[name] = {}
        for rater in dict.fromkeys(rater for one in group for rater in one.rater_dice):
            rated = [one for one in group if rater in one.rater_dice]
            dice = [one.rater_dice[rater] for one in rated]
            agreement[name][rater] = aggregate.summarize(dice, _groups_of(rated, groups))
        most = max(len(one.dice_of_first) for one in group)
        first[name] = [
            aggregate.summarize([one.dice_of_first[: n + 1][-1] for one in group], of_group)
            for n in range(most)
        ]
    parts = (
        {name: row for name, row in part.items() if row}
        for part in (table, sums, ranking, agreement, first)
    )
    return Uncertainty(list(cases), *parts)


def _groups_of(
    cases: Sequence[CaseUncertainty], groups: Mapping[str, str] | None
) -> list[str] | None:
    return [groups[one.case] for one in cases] if groups else None


def _doubt(score: str, values: Sequence[float]) -> np.ndarray:
    """Values of one of RANKED, turned so that larger means less certain."""
    return 1 - np.array(values) if score == "sample_dice" else np.array(values)


def to_json(result: Uncertainty) -> dict[str, Any]:
    """The part of metrics.json on uncertainty; NaN still in it."""
    return {
        "classes": aggregate.as_dicts(result.table),
        "calibration": {
            name: {region: _calibration_json(sums) for region, sums in regions.items()}
            for name, regions in result.calibration.items()
        },
        "ranking": {
            name: {score: _ranking_json(ranking) for score, ranking in row.items()}
            for name, row in result.ranking.items()
        },
        "rater_dice": aggregate.as_dicts(result.rater_dice),
        "dice_of_first": {
            name: [dataclasses.asdict(one) for one in row]
            for name, row in result.dice_of_first.items()
        },
    }


def _calibration_json(sums: Calibration) -> dict[str, Any]:
    return {
        "ece": sums.ece,
        "brier": sums.brier,
        "pixels": sums.total,
        "reliability": {
            "confidence": sums.confidence,
            "frequency": sums.frequency,
            "pixels": sums.pixels,
        },
    }


def _ranking_json(ranking: Ranking) -> dict[str, Any]:
    return {
        "aurc": ranking.aurc,
        "excess": ranking.excess,
        "uninformed": ranking.uninformed,
        "spearman": ranking.spearman,
        "n_cases": len(ranking.risk),
    }


def format_table(result: Uncertainty) -> str:
    """Up to three small tables with a line per class; what was not saved is left out.

    Of members the means over cases (their intervals are in metrics.json), then calibration, then
    the AURC by each score between that of the best order and that of none.
    """
    names = list(result.table or result.rater_dice)
    blocks = [_member_cells, _calibration_cells, _ranking_cells]
    return "\n".join(
        text for cells in blocks if (text := _block({name: cells(result, name) for name in names}))
    )


def _member_cells(result: Uncertainty, name: str) -> dict[str, str]:
    row = result.table.get(name, {})
    shown = [metric for metric in SAMPLE_METRICS if metric in row]
    cells = {metric: f"{row[metric].mean:.4f}" for metric in shown}
    means = [one.mean for one in result.rater_dice.get(name, {}).values()]
    return cells | ({"dice_of_raters": f"{min(means):.4f}..{max(means):.4f}"} if means else {})


def _calibration_cells(result: Uncertainty, name: str) -> dict[str, str]:
    regions = result.calibration.get(name, {}).items()
    return {
        f"{score} ({region})": f"{getattr(sums, score):.4f}"
        for score in ("ece", "brier")
        for region, sums in regions
    }


def _ranking_cells(result: Uncertainty, name: str) -> dict[str, str]:
    row = result.ranking.get(name, {})
    if not row:
        return {}
    cells = {f"aurc ({score})": f"{one.aurc:.4f}" for score, one in row.items()}
    first = next(iter(row.values()))
    best, uninformed = first.aurc - first.excess, first.uninformed
    return {"best": f"{best:.4f}", **cells, "uninformed": f"{uninformed:.4f}"}


def _block(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Rows with a header, in columns; "" without any column."""
    headers = list(dict.fromkeys(header for row in rows.values() for header in row))
    if not headers:
        return ""
    table = [["class", *headers]]
    table += [[name, *(row.get(header, "") for header in headers)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (zip(line, widths, strict=True) for line in table)
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in line) for line in lines)
