"""Tables of a plan of `benchmarks.quality`: what is scored per dataset, and what it costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.network_cost import of_segmentation
from medsegdiff_jax import atomic
from medsegdiff_jax.types import InputError

Row = dict[str, Any]  # a file written by `benchmarks.quality`

METRICS = (("dice", "Dice", 4), ("iou", "IoU", 4), ("hd95", "HD95", 1))
DOUBT = {
    "GED": ("classes", ("ged", "mean")),
    "interval IoU": ("classes", ("interval_iou", "mean")),
    "border ECE": ("calibration", ("border", "ece")),
}
COST = ("M parameters", "GFLOP per step", "GFLOP", "members until stable", "s per case")
RESAMPLES = 10_000
OTHER_WEIGHTS = " (*)"


def table(rows: list[Row], models: list[str]) -> str:
    """Markdown: scores with a line per model for each dataset, then the costs.

    Args:
      rows: of any order; seeds are averaged.
      models: names of rows in the order of the lines; the others are compared with the first.
    """
    parts = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        of_data = [row for row in rows if row["dataset"] == dataset]
        parts.append(f"**{dataset}**\n\n{_scores(_marked(of_data, models), models)}")
    return "\n\n".join([*parts, f"**Cost**\n\n{_costs(rows, models)}"]) + "\n"


def _marked(rows: list[Row], models: list[str]) -> list[Row]:
    """The rows, marked where the same training was done again, so that the weights are others."""
    weights: dict[tuple, str] = {}
    marked = []
    for row in sorted(rows, key=lambda row: models.index(row["model"])):
        made, own = row["commands"]["train.py"], row["scores"]["run"]["checkpoint_sha256"]
        first = weights.setdefault((row["seed"], *made), own)
        marked.append(row | {"mark": "" if own == first else OTHER_WEIGHTS})
    return marked


def paired_difference(
    ours: np.ndarray, theirs: np.ndarray, groups: Sequence[str] | None = None
) -> tuple[float, float, float]:
    """Mean of ours - theirs, and its 95 % percentile bootstrap interval over seeds and cases.

    Seeds and cases, or groups of them, are drawn independently of each other. Of one seed the
    interval knows only what other test images would change; of two or three it knows too little of
    what another training would, since the variance between so few seeds drawn from themselves is
    half, or two thirds, of what it should be.

    Args:
      ours, theirs: [seeds, cases] the same seeds and cases of two models.
      groups: [cases] which are drawn together; None if each is on its own.
    """
    difference = np.asarray(ours) - np.asarray(theirs)
    labels = range(difference.shape[1]) if groups is None else groups
    _, group = np.unique(labels, return_inverse=True)
    sums, counts = np.stack([np.bincount(group, row) for row in difference]), np.bincount(group)
    rng = np.random.default_rng(0)
    seeds, drawn = (rng.integers(0, size, (RESAMPLES, size)) for size in sums.shape)
    means = [
        sums[np.ix_(of_seeds, of_groups)].sum() / (len(of_seeds) * counts[of_groups].sum())
        for of_seeds, of_groups in zip(seeds, drawn, strict=True)
    ]
    low, high = np.percentile(means, (2.5, 97.5))
    return float(difference.mean()), float(low), float(high)


def write_into(document: Path, name: str, text: str) -> None:
    """Replaces what stands between the marks of a plan.

    Raises:
      InputError: the document has no such marks.
    """
    begin, end = f"<!-- quality: {name} -->\n", "<!-- end -->"
    before, mark, rest = document.read_text().partition(begin)
    _, closing, after = rest.partition(end)
    if not mark or not closing:
        raise InputError(f"{document}: has no lines {begin.strip()} and {end}")
    atomic.write_text(document, f"{before}{begin}{text}\n{end}{after}")


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    written = ["| " + " | ".join(cells) + " |" for cells in (head, *lines)]
    return "\n".join([written[0], "| --- " * len(head) + "|", *written[1:]])


def _scores(rows: list[Row], models: list[str]) -> str:
    titles = [title for _, title, _ in METRICS]
    ged, *doubt = DOUBT
    head = ["model", "seeds", titles[0], f"minus {models[0]}", *titles[1:]]
    head += [ged, "GED without self-pairs", *doubt]
    groups = [[row for row in rows if row["model"] == model] for model in models]
    lines = [_score_cells(group, groups[0]) for group in groups if group]
    return _markdown(head, lines)


def _score_cells(group: list[Row], first: list[Row]) -> list[str]:
    overlap, *others = (_with_interval(group, metric, digits) for metric, _, digits in METRICS)
    ours, theirs, together = _shared_cases(group, first)
    difference = ""
    if group is not first and ours.size:
        difference = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*paired_difference(ours, theirs, together))
    ged, *doubt = (_number(_doubt(group, part, keys)) for part, keys in DOUBT.values())
    model, seeds = group[0]["model"] + max(row["mark"] for row in group), str(len(group))
    return [model, seeds, overlap, difference, *others, ged, _ged_of_others(group), *doubt]


def _with_interval(group: list[Row], metric: str, digits: int) -> str:
    found = []
    for row in group:
        classes = row["scores"]["classes"]
        found.append(classes.get("all classes") or next(iter(classes.values())))
    ends = (np.mean([one[metric][key] for one in found]) for key in ("mean", "low", "high"))
    mean, low, high = (f"{value:.{digits}f}" for value in ends)
    return f"{mean} [{low}, {high}]"


def _shared_cases(ours: list[Row], theirs: list[Row]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Dice [seeds, cases] of two models, of what both have, and the cases' groups."""
    both = [{row["seed"]: row["dice_of_cases"] for row in rows} for rows in (ours, theirs)]
    seeds = sorted(both[0].keys() & both[1].keys())
    found = [set(of[seed]) for of in both for seed in seeds]
    cases = sorted(set.intersection(*found)) if found else []
    dice = (np.array([[of[seed][case] for case in cases] for seed in seeds]) for of in both)
    known = ours[0].get("group_of_cases", {})
    return *dice, [known.get(case, case) for case in cases]


def _doubt(group: list[Row], part: str, keys: tuple[str, str]) -> float | None:
    """A score of uncertainty over seeds and classes; None where undefined or not measured."""
    values = []
    for row in group:
        classes = row["scores"].get("uncertainty", {}).get(part, {}).values()
        found = (scores.get(keys[0], {}).get(keys[1]) for scores in classes)
        defined = [value for value in found if value is not None]
        values += [np.mean(defined)] if defined else []
    return float(np.mean(values)) if values else None


def _ged_of_others(group: list[Row]) -> str:
    """GED without the pairs of a sample with itself, whose share is 1 / n.

    These pairs make an ensemble of few members look worse than one of many that are drawn alike. Of
    independent samples it would be unbiased; opposite ones (`denoiser`) lie farther apart.
    """
    ged, diversity = (_doubt(group, "classes", (key, "mean")) for key in ("ged", "diversity"))
    if ged is None or diversity is None:
        return ""
    return _number(ged - diversity / group[0]["sampling"]["members"])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _costs(rows: list[Row], models: list[str]) -> str:
    """A line per model; more, if its cost depends on the dataset."""
    lines = []
    for model in models:
        groups: dict[tuple, list[Row]] = {}
        for row in rows:
            if row["model"] == model:
                groups.setdefault(tuple(row["cost"].values()), []).append(row)
        lines += [_cost_cells(group) for group in groups.values()]
    return _markdown(["model", "data", *COST], lines)


def _cost_cells(group: list[Row]) -> list[str]:
    datasets = ", ".join(dict.fromkeys(row["dataset"] for row in group))
    spent, how = group[0]["cost"], group[0]["sampling"]
    return [
        group[0]["model"],
        datasets,
        f"{spent['parameters']:.2f}",
        f"{spent['denoise']:.2f}" if spent["denoise"] else "",
        f"{of_segmentation(spent, how, how['members']):.1f}",
        _stable(group),
        f"{np.mean([row['seconds_per_case'] for row in group]):.2f}",
    ]


def _stable(group: list[Row]) -> str:
    found = [row["stable_members"] for row in group if row.get("stable_members")]
    if not found:
        return ""
    mean = np.mean([one["mean"] for one in found])
    unstable, cases = (sum(one[key] for one in found) for key in ("unstable", "cases"))
    spent = of_segmentation(group[0]["cost"], group[0]["sampling"], mean)
    return f"{mean:.1f} ({unstable} of {cases} more; {spent:.1f} GFLOP)"
