"""What matplotlib draws: contact sheets, learning curves, Dice plots.

Nothing here is read back by the program.
"""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from medsegdiff_jax.atomic import replacing
from medsegdiff_jax.display import UNCERTAINTY_COLOR, CasePictures, class_color
from medsegdiff_jax.types import InputError, Task


def write_contact_sheet(
    path: str | os.PathLike, rows: Sequence[CasePictures], task: Task, total: int
) -> None:
    """Writes one PNG: a row per case with image, mask, probability, uncertainty and overlay.

    Args:
      path: PNG to write.
      rows: the cases that are shown.
      task: names the classes.
      total: how many cases there are.
    """
    titles = ("image", "mask", "probability", "uncertainty", "overlay")
    ratios = [row.image.shape[0] / row.image.shape[1] for row in rows]
    figure = new_figure(9.0, 1.75 * sum(ratios) + 0.12 * len(rows) + 0.9)
    grid = figure.add_gridspec(len(rows), 5, height_ratios=ratios, wspace=0.03, hspace=0.03)
    for i, row in enumerate(rows):
        pictures = (row.image, row.mask, row.probability, row.uncertainty, row.overlay)
        for j, picture in enumerate(pictures):
            axes = figure.add_subplot(grid[i, j])
            axes.set_xticks([])
            axes.set_yticks([])
            color_map = {2: "gray", 3: "magma"}.get(j)
            axes.imshow(picture, cmap=color_map, vmin=0.0, vmax=1.0)
            if i == 0:
                axes.set_title(titles[j], fontsize=9)
            if j == 0:
                axes.set_ylabel(plain(_shorten(row.name)), fontsize=7)
    handles = [
        Line2D([], [], color=class_color(i) / 255, lw=4, label=plain(name))
        for i, name in enumerate(task.classes)
    ]
    handles.append(Line2D([], [], color=UNCERTAINTY_COLOR / 255, lw=4, label="uncertain (overlay)"))
    shown = f"{len(rows)} of {total} cases; " if len(rows) < total else ""
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=6,
        fontsize=8,
        frameon=False,
        title=f"{shown}probability and uncertainty: black 0, white or yellow 1",
        title_fontsize=8,
    )
    write_figure(path, figure)


def write_learning_curve(metrics_path: str | os.PathLike, path: str | os.PathLike) -> None:
    """Draws what a run logged: losses on a logarithmic axis and overlap metrics in [0, 1].

    Args:
      metrics_path: metrics.jsonl, one JSON object per line with "step" and named numbers.
      path: PNG to write; not written where the log holds neither losses nor overlaps.

    Raises:
      InputError: the file is missing or is not JSON lines.
    """
    curves = _read_curves(Path(metrics_path))
    panels = {
        "loss": {k: v for k, v in curves.items() if "loss" in k},
        "overlap": {k: v for k, v in curves.items() if k.startswith("validation/")},
    }
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        return
    figure = new_figure(5.0 * len(panels), 3.6)
    last = max(step for points in curves.values() for step, _ in points)
    for index, (name, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for label, points in sorted(lines.items()):
            steps, values = np.asarray(points, dtype=np.float64).T
            marker = "o" if len(points) <= 30 else None
            axes.plot(steps, values, label=label, lw=1.4, marker=marker, ms=3)
        if name == "loss" and all(v > 0 for points in lines.values() for _, v in points):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")  # 0.2, not 2 x 10^-1
            axes.yaxis.set_minor_formatter(NullFormatter())
        if name == "overlap":
            axes.set_ylim(0, 1)
        axes.set_xlim(0, 1.03 * last)  # of all panels; a single validation has no range of its own
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7, frameon=False)
    write_figure(path, figure)


def _read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """{name: [(step, finite value)]} of a JSON-lines file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    curves: dict[str, list[tuple[float, float]]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = row["step"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: line {number} is not a JSON object with a step") from error
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((step, value))
    return curves


def write_dice_plot(path: str | os.PathLike, scores: Mapping[str, np.ndarray]) -> None:
    """Draws every case's Dice as a point and each class's quartiles as a box.

    Args:
      path: PNG to write.
      scores: per class name, Dice per case [N] in [0, 1]; NaN is left out and counted.
    """
    figure = new_figure(6.4, 1.3 + 0.75 * len(scores))
    axes = figure.add_subplot()
    jitter = np.random.default_rng(0)
    labels = []
    for row, (name, values) in enumerate(scores.items()):
        valid = values[np.isfinite(values)]
        color = class_color(row) / 255 * 0.8
        height = row + jitter.uniform(-0.2, 0.2, valid.size)
        axes.scatter(valid, height, s=14, color=color, alpha=0.6, lw=0, zorder=2)
        if valid.size:
            axes.boxplot(
                valid,
                positions=[row],
                orientation="horizontal",
                widths=0.55,
                showfliers=False,
                medianprops={"color": "black", "lw": 1.6},
                zorder=3,
            )
        median = f"median {np.median(valid):.3f}, " if valid.size else ""
        labels.append(f"{plain(name)}\n{median}n = {valid.size}")
    axes.set_yticks(range(len(scores)), labels, fontsize=8)
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set_xlim(-0.01, 1.01)
    axes.set_xlabel("Dice per case")
    axes.grid(axis="x", alpha=0.25)
    write_figure(path, figure)


def new_figure(width: float, height: float) -> Figure:
    """A figure that belongs to no window system and no global list."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain(name: str) -> str:
    """A name as text of a figure: matplotlib would set what stands between two $ as a formula."""
    return name.replace("$", r"\$")


def _shorten(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else f"{name[:6]}...{name[-9:]}"


def write_figure(path: str | os.PathLike, figure: Figure) -> None:
    """Writes a matplotlib figure as PNG, all or nothing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
