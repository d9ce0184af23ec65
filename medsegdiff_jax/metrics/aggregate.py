"""Scores of single cases, under an empty-mask policy, and the numbers of a table from them.

Dice and IoU of two empty masks are 0 / 0, and a surface distance to an empty mask does not exist.
Leaving such cases out silently rewards a model that predicts nothing; so the policy has a name:

"strict" (default): both empty: distances are 0, all else 1. Exactly one empty: distances are the
    image diagonal (array extent times spacing), about the worst there can be, all else 0.
"ignore": undefined values are left out of the mean; n_valid says how many remain.

The interval is the percentile bootstrap of the mean over cases (Efron and Tibshirani 1993, chapter
13) at 95 %, with a fixed seed. Cases that belong together, of one patient say, are alike; they are
drawn together (the cluster bootstrap: Davison and Hinkley 1997, section 3.8), since by themselves
they would make the interval too narrow. The standard deviation is that of the cases (n - 1).
"""

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from medsegdiff_jax.metrics.overlap import dice, iou, precision, sensitivity
from medsegdiff_jax.metrics.surface import surface_distances
from medsegdiff_jax.types import check_one_of

METRICS = ("dice", "iou", "sensitivity", "precision", "hd95", "assd", "nsd")
DISTANCES = ("hd95", "assd")
POLICIES = ("strict", "ignore")
ALL_CLASSES = "all classes"

_RESAMPLES = 10_000
_BATCH_ELEMENTS = 5_000_000


@dataclasses.dataclass(frozen=True)
class CaseScore:
    """One case and class.

    Attributes:
      case: name of the case.
      class_name: name of the class.
      values: one of METRICS -> what counts under the policy, NaN if the case is left out; distances
        in the units of the spacing, all else in [0, 1].
      prediction_empty: whether the predicted mask is empty.
      reference_empty: whether the reference mask is empty.
    """

    case: str
    class_name: str
    values: dict[str, float]
    prediction_empty: bool
    reference_empty: bool


@dataclasses.dataclass(frozen=True)
class Summary:
    """One metric of one class over the cases.

    Attributes:
      mean: over the valid cases; NaN without any.
      sd: standard deviation over the valid cases (n - 1); NaN below two.
      low: lower end of the 95 % bootstrap interval of the mean; NaN below two cases or groups.
      high: upper end.
      n_valid: cases with a defined value.
      n_cases: all cases.
    """

    mean: float
    sd: float
    low: float
    high: float
    n_valid: int
    n_cases: int


def score_case(
    case: str,
    class_name: str,
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    nsd_tolerance: float,
    policy: str,
) -> CaseScore:
    """METRICS of one case and class.

    Args:
      case: name of the case.
      class_name: name of the class.
      prediction: [H, W] or volume, in {0, 1}.
      reference: mask of the same shape.
      spacing: pixel size along each axis of the arrays.
      nsd_tolerance: distance at which surfaces still agree, in the units of the spacing.
      policy: for empty masks, one of POLICIES.

    Raises:
      InputError: different shapes, values other than 0 and 1, a bad spacing, or an unknown policy.
    """
    check_policy(policy)
    distances = surface_distances(prediction, reference, spacing)
    values = {
        "dice": dice(prediction, reference),
        "iou": iou(prediction, reference),
        "sensitivity": sensitivity(prediction, reference),
        "precision": precision(prediction, reference),
        "hd95": distances.hd95,
        "assd": distances.assd,
        "nsd": distances.nsd(nsd_tolerance),
    }
    empty = not np.any(prediction), not np.any(reference)
    if policy == "strict" and any(empty):
        diagonal = float(np.linalg.norm(np.asarray(np.shape(reference)) * np.asarray(spacing)))
        far, near = (0.0, 1.0) if all(empty) else (diagonal, 0.0)
        values = {metric: far if metric in DISTANCES else near for metric in METRICS}
    return CaseScore(case, class_name, values, *empty)


def check_policy(policy: str) -> None:
    """Raises InputError for an unknown policy."""
    check_one_of("empty-mask policy", policy, POLICIES)


def dice_of_empty(policy: str) -> float:
    """What the Dice of two empty masks counts: 1, or NaN where they are left out.

    Raises:
      InputError: unknown policy.
    """
    check_policy(policy)
    return 1.0 if policy == "strict" else float("nan")


def summarize(values: Sequence[float], groups: Sequence[str] | None = None) -> Summary:
    """Mean, sd and 95 % bootstrap interval of the mean; NaN values are left out and counted.

    Args:
      values: [N], one per case.
      groups: [N] which of them are drawn together; None if each is a group of its own.
    """
    values = np.asarray(values, np.float64)
    defined = ~np.isnan(values)
    valid = values[defined]
    labels = range(len(values)) if groups is None else groups
    low, high = _interval(valid, [one for one, keep in zip(labels, defined, strict=True) if keep])
    return Summary(
        mean=float(valid.mean()) if len(valid) else float("nan"),
        sd=float(valid.std(ddof=1)) if len(valid) > 1 else float("nan"),
        low=low,
        high=high,
        n_valid=len(valid),
        n_cases=len(values),
    )


def _interval(values: np.ndarray, labels: Sequence[Hashable]) -> tuple[float, float]:
    """Of the mean of values [N] when all with the same label are drawn together."""
    number = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    if len(number) < 2:
        return float("nan"), float("nan")
    index = [number[label] for label in labels]
    found = stats.bootstrap(
        (np.bincount(index, values), np.bincount(index)),
        _ratio_of_sums,
        paired=True,
        n_resamples=_RESAMPLES,
        batch=max(1, _BATCH_ELEMENTS // len(number)),
        vectorized=True,
        confidence_level=0.95,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def _ratio_of_sums(sums: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    """The mean over the cases of the groups drawn."""
    return np.sum(sums, axis=axis) / np.sum(counts, axis=axis)


def table(
    scores: Iterable[CaseScore], groups: Mapping[str, str] | None = None
) -> dict[str, dict[str, Summary]]:
    """Summary per class and metric.

    Args:
      scores: any number of cases and classes, in any order.
      groups: case -> its group, of all cases; None if each is a group of its own.

    Returns:
      {class name: {one of METRICS: Summary}}, classes in order of appearance; with several
      classes a last row ALL_CLASSES, the mean over each case's (valid) classes.
    """
    scores = list(scores)
    by_class: dict[str, dict[str, dict[str, float]]] = {}
    for score in scores:
        by_class.setdefault(score.class_name, {})[score.case] = score.values
    if len(by_class) > 1:
        by_class[ALL_CLASSES] = mean_over_classes(scores)
    return {
        name: {
            metric: summarize(
                [values[metric] for values in row.values()],
                [groups[case] for case in row] if groups else None,
            )
            for metric in METRICS
        }
        for name, row in by_class.items()
    }


def mean_over_classes(scores: Iterable[CaseScore]) -> dict[str, dict[str, float]]:
    """Case -> {one of METRICS: mean over its (valid) classes, NaN without any}."""
    by_case: dict[str, list[dict[str, float]]] = {}
    for score in scores:
        by_case.setdefault(score.case, []).append(score.values)
    return {
        case: {metric: _valid_mean(group, metric) for metric in METRICS}
        for case, group in by_case.items()
    }


def as_dicts(summaries: Mapping[str, Mapping[str, Summary]]) -> dict[str, Any]:
    """Summaries by name and metric as plain dictionaries, for JSON; NaN still in them."""
    return {
        name: {metric: dataclasses.asdict(value) for metric, value in row.items()}
        for name, row in summaries.items()
    }


def _valid_mean(group: Sequence[dict[str, float]], metric: str) -> float:
    valid = [values[metric] for values in group if not np.isnan(values[metric])]
    return float(np.mean(valid)) if valid else float("nan")
