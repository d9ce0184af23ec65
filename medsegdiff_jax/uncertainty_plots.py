"""Reliability, risk against coverage, and Dice against members as PNG files."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import NullFormatter

from medsegdiff_jax import display, plots
from medsegdiff_jax.metrics import Calibration, Ranking
from medsegdiff_jax.metrics.aggregate import Summary

# Darker than on tissue: these lie on white.
_SHADE = 0.8 / 255


def write_reliability(
    path: str | os.PathLike, calibration: Mapping[str, Mapping[str, Calibration]]
) -> None:
    """Draws how often a probability comes true, and below it how many pixels have it.

    Args:
      path: PNG to write.
      calibration: per class name and region, sums over all cases; a column per region.
    """
    regions = list(next(iter(calibration.values())))
    figure = plots.new_figure(4.0 * len(regions), 5.0)
    grid = figure.add_gridspec(2, len(regions), height_ratios=(3, 1))
    for column, region in enumerate(regions):
        curve = figure.add_subplot(grid[0, column])
        curve.plot((0, 1), (0, 1), color="0.6", lw=1, ls="--")
        counts = figure.add_subplot(grid[1, column], sharex=curve)
        for index, (name, row) in enumerate(calibration.items()):
            sums = row[region]
            color = display.class_color(index) * _SHADE
            known = sums.pixels > 0
            label = f"{plots.plain(name)}: ECE {sums.ece:.4f}"
            line = (sums.confidence[known], sums.frequency[known])
            curve.plot(*line, color=color, marker="o", ms=3.5, lw=1.4, label=label)
            edges = np.linspace(0, 1, len(sums.pixels) + 1)
            counts.stairs(sums.pixels, edges, baseline=None, color=color, lw=1.4)
        curve.set_title({"image": "all pixels", "border": "near the border"}[region], fontsize=9)
        curve.set_xlim(-0.02, 1.02)
        curve.set_ylim(-0.02, 1.02)
        curve.set_ylabel("frequency in the references")
        curve.legend(fontsize=7, frameon=False, loc="upper left")
        if any(row[region].pixels.any() for row in calibration.values()):
            counts.set_yscale("log")
        counts.yaxis.set_minor_formatter(NullFormatter())  # a short axis has no room for them
        counts.set_ylabel("pixels")
        counts.set_xlabel("foreground probability")
        for axes in (curve, counts):
            axes.grid(alpha=0.25)
    plots.write_figure(path, figure)


def write_risk_coverage(
    path: str | os.PathLike, ranking: Mapping[str, Mapping[str, Ranking]]
) -> None:
    """Draws the mean error of the most certain cases against how many these are.

    Args:
      path: PNG to write.
      ranking: per class name and uncertainty score; a panel per class.
    """
    columns = min(3, len(ranking))
    rows = -(-len(ranking) // columns)
    figure = plots.new_figure(1.2 + 3.8 * columns, 0.6 + 3.2 * rows)
    for number, (name, scores) in enumerate(ranking.items(), start=1):
        axes = figure.add_subplot(rows, columns, number)
        for index, (score, one) in enumerate(scores.items()):
            color = display.class_color(index) * _SHADE
            label = f"{score}: AURC {one.aurc:.4f}"
            axes.plot(one.coverage, one.risk, color=color, lw=1.6, label=label)
        label = f"by the error itself: {one.aurc - one.excess:.4f}"
        axes.plot(one.coverage, one.optimal, color="black", lw=1.2, ls=":", label=label)
        label = f"uninformed: {one.uninformed:.4f}"
        axes.axhline(one.uninformed, color="0.6", lw=1, ls="--", label=label)
        axes.set_title(f"{plots.plain(name)}, n = {len(one.risk)}", fontsize=9)
        axes.set_xlim(0, 1.02)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("coverage: fraction of cases kept, most certain first")
        axes.set_ylabel("risk: mean 1 - Dice of these")
        axes.legend(fontsize=7, frameon=False)
        axes.grid(alpha=0.25)
    plots.write_figure(path, figure)


def write_members(path: str | os.PathLike, dice: Mapping[str, Sequence[Summary]]) -> None:
    """Draws mean Dice and its interval against the members that are fused (figure 3 of the paper).

    Args:
      path: PNG to write.
      dice: class name -> summary over cases for n = 1, 2, ... members.
    """
    figure = plots.new_figure(4.6, 3.4)
    axes = figure.add_subplot()
    for index, (name, row) in enumerate(dice.items()):
        color, n = display.class_color(index) * _SHADE, range(1, len(row) + 1)
        label = plots.plain(name)
        axes.plot(n, [one.mean for one in row], color=color, marker="o", ms=3.5, label=label)
        bounds = [one.low for one in row], [one.high for one in row]
        axes.fill_between(n, *bounds, color=color, alpha=0.15, lw=0)
    axes.set_xlabel("members, fused by vote")
    axes.set_ylabel("mean Dice, 95% interval")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.25)
    plots.write_figure(path, figure)
