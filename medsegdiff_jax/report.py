"""Pictures for people: overlays, animations, contact sheets, learning curves, Dice plots.

Nothing here is read back by the program.
"""

import dataclasses
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
from scipy import ndimage

from medsegdiff_jax import fusion, imaging
from medsegdiff_jax.atomic import replacing
from medsegdiff_jax.types import InputError, Task

# Okabe and Ito's colours, told apart with any colour vision; ordered for contrast on tissue.
CLASS_COLORS = np.array(
    [(0, 200, 255), (240, 228, 66), (0, 158, 115), (204, 121, 167), (230, 159, 0), (0, 114, 178)],
    dtype=np.float32,
)
UNCERTAINTY_COLOR = np.array((255, 0, 160), dtype=np.float32)
SHEET_PIXELS = 320  # longer side of a picture in a contact sheet


@dataclasses.dataclass(frozen=True)
class CasePictures:
    """One row of a contact sheet; all pictures are small and of the same size.

    Attributes:
      name: case id.
      image: uint8 [h, w, 3].
      mask: uint8 [h, w, 3], each class in its colour.
      probability: float32 [h, w] of any foreground class, in [0, 1].
      uncertainty: float32 [h, w] in [0, 1].
      overlay: uint8 [h, w, 3].
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    probability: np.ndarray
    uncertainty: np.ndarray
    overlay: np.ndarray


def class_color(index: int) -> np.ndarray:
    """RGB float32 [3] in [0, 255] of the class with this index (colours repeat after six)."""
    return CLASS_COLORS[index % len(CLASS_COLORS)]


def to_byte(values: np.ndarray) -> np.ndarray:
    """Maps [0, 1] to uint8 0..255, rounding to nearest."""
    return np.rint(np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)


def to_display(image: np.ndarray) -> np.ndarray:
    """Turns an image of any kind into uint8 RGB for a screen.

    Bright 8-bit images are kept. Others use a few of their many levels, or, as in fluorescence
    microscopy, the lowest: their 0.5th and 99.5th percentiles become black and white.

    Args:
      image: [H, W, C] uint8, uint16 or float; C other than 1 or 3 shows its first channel.

    Returns:
      uint8 [H, W, 3].
    """
    if image.shape[-1] not in (1, 3):
        image = image[..., :1]
    low, high = np.percentile(image, (0.5, 99.5))
    if image.dtype != np.uint8 or low < high < 128:
        image = to_byte((image.astype(np.float32) - low) / max(high - low, 1e-12))
    return np.broadcast_to(image, (*image.shape[:2], 3))


def grey(values: np.ndarray) -> np.ndarray:
    """Paints values [H, W] in [0, 1] as uint8 RGB, 0 black and 1 white."""
    return np.repeat(to_byte(values)[..., None], 3, axis=-1)


def regions_of(labels: np.ndarray, task: Task) -> np.ndarray:
    """Foreground classes of a label map [H, W] as bool [H, W, number of classes]."""
    mask = imaging.labels_to_mask(labels, task).astype(bool)
    return mask[..., 1:] if task.one_hot else mask


def foreground(probability: np.ndarray, task: Task) -> np.ndarray:
    """[H, W] probability of any foreground class of [H, W, K]: 1 - background, or the maximum."""
    return 1.0 - probability[..., 0] if task.one_hot else probability.max(axis=-1)


def paint_mask(regions: np.ndarray) -> np.ndarray:
    """Paints bool regions [H, W, classes] in class colours on black; later classes on top."""
    picture = np.zeros((*regions.shape[:2], 3), np.float32)
    for index in range(regions.shape[-1]):
        picture[regions[..., index]] = class_color(index)
    return picture.astype(np.uint8)


def overlay(image: np.ndarray, regions: np.ndarray, uncertainty: np.ndarray | None) -> np.ndarray:
    """Draws the outline of each region on the image and tints uncertain pixels magenta.

    Args:
      image: uint8 [H, W, 3] from `to_display`.
      regions: bool [H, W, classes].
      uncertainty: [H, W] in [0, 1] or None; its opacity is 0.5 at 1.

    Returns:
      uint8 [H, W, 3]. Lines are about 1/250 of the shorter side wide, with a dark rim, so that they
      show on any tissue and after shrinking.
    """
    picture = image.astype(np.float32)
    if uncertainty is not None:
        opacity = 0.5 * np.clip(uncertainty, 0.0, 1.0)[..., None]
        picture += opacity * (UNCERTAINTY_COLOR - picture)
    radius = max(1, round(min(image.shape[:2]) / 500))
    for index in range(regions.shape[-1]):
        inside = regions[..., index].astype(np.uint8)
        rim, line = _outline(inside, radius + max(1, radius // 2)), _outline(inside, radius)
        picture[rim] *= 0.35
        picture[line] = class_color(index)
    return np.rint(picture).astype(np.uint8)


def _outline(inside: np.ndarray, radius: int) -> np.ndarray:
    """Pixels within `radius` of the border of a {0, 1} region; the picture's edge is no border."""
    size = 2 * radius + 1
    grown = ndimage.maximum_filter(inside, size, mode="nearest")
    return grown != ndimage.minimum_filter(inside, size, mode="nearest")


def case_pictures(
    name: str,
    image: np.ndarray,
    labels: np.ndarray,
    probability: np.ndarray,
    uncertainty: np.ndarray,
    task: Task,
) -> CasePictures:
    """Shrinks one result to a row of a contact sheet (longer side at most SHEET_PIXELS).

    Args:
      name: case id.
      image: uint8 [H, W, 3] from `to_display`.
      labels: [H, W] label ids.
      probability: [H, W, K] in [0, 1].
      uncertainty: [H, W] in [0, 1].
      task: says what the labels and channels mean.
    """
    scale = min(1.0, SHEET_PIXELS / max(labels.shape))
    size = tuple(max(1, round(side * scale)) for side in labels.shape)
    small = imaging.resize_image(image, size)
    regions = regions_of(imaging.resize_labels(labels, size), task)
    chance = imaging.resize_probability(foreground(probability, task)[..., None], size)[..., 0]
    doubt = imaging.resize_probability(uncertainty[..., None], size)[..., 0]
    return CasePictures(
        name, small, paint_mask(regions), chance, doubt, overlay(small, regions, doubt)
    )


def animation(image: np.ndarray, path: np.ndarray, task: Task) -> list[np.ndarray]:
    """How a sample came about, a frame per step: noisy mask, its probabilities, and the outline.

    Args:
      image: uint8 [H, W, 3] from `to_display`.
      path: [N, S, S, 2 K] noisy masks of unit variance and probabilities, see `CaseResult`.
      task: says what the channels mean.

    Returns:
      N uint8 [h, 3 w, 3], longer side of a panel SHEET_PIXELS.
    """
    scale = SHEET_PIXELS / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[:2])
    small = imaging.resize_image(image, size)
    frames = []
    for noisy, chance in zip(*np.split(path, 2, axis=-1), strict=True):
        chance = imaging.resize_probability(chance, size)
        labels = imaging.mask_to_labels(fusion.decide(chance, task), task)
        # Two standard deviations from black to grey and from grey to white.
        noise = imaging.resize_probability(np.clip(0.5 + noisy[..., -1:] / 4, 0, 1), size)[..., 0]
        outlined = overlay(small, regions_of(labels, task), None)
        frames.append(np.hstack([grey(noise), grey(foreground(chance, task)), outlined]))
    return frames


def write_contact_sheet(path: str | os.PathLike, rows: Sequence[CasePictures], task: Task) -> None:
    """Writes one PNG: a row per case with image, mask, probability, uncertainty and overlay."""
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
                axes.set_ylabel(_shorten(row.name), fontsize=7)
    handles = [
        Line2D([], [], color=class_color(i) / 255, lw=4, label=name)
        for i, name in enumerate(task.classes)
    ]
    handles.append(Line2D([], [], color=UNCERTAINTY_COLOR / 255, lw=4, label="uncertain (overlay)"))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=6,
        fontsize=8,
        frameon=False,
        title="probability and uncertainty: black 0, white or yellow 1",
        title_fontsize=8,
    )
    write_figure(path, figure)


def write_learning_curve(metrics_path: str | os.PathLike, path: str | os.PathLike) -> None:
    """Draws what a run logged: losses on a logarithmic axis and overlap metrics in [0, 1].

    Args:
      metrics_path: metrics.jsonl, one JSON object per line with "step" and named numbers.
      path: PNG to write.

    Raises:
      InputError: the file is missing, is not JSON lines, or holds neither losses nor overlaps.
    """
    curves = _read_curves(Path(metrics_path))
    panels = {
        "loss": {k: v for k, v in curves.items() if "loss" in k},
        "overlap": {k: v for k, v in curves.items() if k.startswith("validation/")},
    }
    panels = {name: lines for name, lines in panels.items() if lines}
    if not panels:
        raise InputError(f"{metrics_path}: holds no losses and no overlap metrics")
    figure = new_figure(5.0 * len(panels), 3.6)
    for index, (name, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for label, points in sorted(lines.items()):
            steps, values = np.asarray(points, dtype=np.float64).T
            marker = "o" if len(points) <= 30 else None
            axes.plot(steps, values, label=label, lw=1.4, marker=marker, ms=3)
        if name == "loss" and all(v > 0 for points in lines.values() for _, v in points):
            axes.set_yscale("log")
        if name == "overlap":
            axes.set_ylim(0, 1)
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
        labels.append(f"{name}\n{median}n = {valid.size}")
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


def _shorten(name: str, limit: int = 18) -> str:
    return name if len(name) <= limit else f"{name[:6]}...{name[-9:]}"


def write_figure(path: str | os.PathLike, figure: Figure) -> None:
    """Writes a matplotlib figure as PNG, all or nothing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
