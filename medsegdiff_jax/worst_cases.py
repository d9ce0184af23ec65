"""The cases that went worst, as small pictures with the outlines of reference and prediction."""

import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from medsegdiff_jax import display, imaging, volumes
from medsegdiff_jax.html_report import Figure
from medsegdiff_jax.metrics.aggregate import CaseScore
from medsegdiff_jax.types import InputError, Task, class_mask

WORST_CASES = 8
PICTURE_PIXELS = 320  # longer side
LEGEND = {"reference": display.class_color(1), "prediction": display.class_color(0)}
_GREY = 110  # of the ground, where there is no image


def choose(scores: Iterable[CaseScore]) -> list[CaseScore]:
    """The WORST_CASES cases with the lowest Dice, lowest first; each once, with its worst class.

    Cases that are left out (NaN) do not count; equal ones keep their order.
    """
    lowest: dict[str, tuple[float, CaseScore]] = {}
    for score in scores:
        dice = score.values["dice"]
        if not math.isnan(dice) and dice < lowest.get(score.case, (math.inf, None))[0]:
            lowest[score.case] = dice, score
    ranked = sorted(lowest.values(), key=lambda pair: pair[0])
    return [score for _, score in ranked[:WORST_CASES]]


def picture(
    score: CaseScore,
    prediction: np.ndarray,
    reference: np.ndarray,
    task: Task,
    grid: volumes.Grid | None,
    plane: str,
    inputs: Sequence[Path],
    overlay: Path | None,
) -> Figure:
    """A case with both outlines; of a volume, the slice where they differ most.

    Args:
      score: of the case and class.
      prediction: labels [H, W], or [X, Y, Z] on the grid.
      reference: labels of the same shape.
      task: says what they mean.
      grid: of a volume; None for a picture.
      plane: in which a volume is cut.
      inputs: the files that were segmented; where they are gone, a picture is drawn on its overlay,
        and without that, or for a volume, on plain grey.
      overlay: the picture with the outlines of the prediction.
    """
    index = task.classes.index(score.class_name)
    masks = [class_mask(labels, task, index) for labels in (prediction, reference)]
    if grid is None:
        ground, note = _read_ground(inputs, overlay, reference.shape)
        return _figure(score, [note], _draw(ground, masks, (1.0, 1.0)))
    masks = [volumes.to_slices(mask, grid, plane) for mask in masks]
    number = worst_slice(*masks)
    scan = _read_scan(inputs, task, grid, plane)
    ground, note = (None, "image not found") if scan is None else (scan[number], "")
    place = f"{plane} slice {number + 1} of {len(masks[0])}"
    png = _draw(ground, [mask[number] for mask in masks], volumes.plane_spacing(grid, plane))
    return _figure(score, [place, note], png)


def worst_slice(prediction: np.ndarray, reference: np.ndarray) -> int:
    """Number of the slice where two masks bool [D, H, W] differ in most pixels.

    Where they do not differ at all: the slice with the largest reference.
    """
    differing = (prediction != reference).sum(axis=(1, 2))
    return int(np.argmax(differing if differing.any() else reference.sum(axis=(1, 2))))


def _read_ground(
    inputs: Sequence[Path], overlay: Path | None, shape: tuple[int, ...]
) -> tuple[np.ndarray | None, str]:
    """The picture [H, W, C] to draw on, and what is to be said about it."""
    candidates = [(path, "") for path in inputs]
    candidates += [(overlay, "drawn on its overlay")] if overlay else []
    for path, note in candidates:
        try:
            image = imaging.read_image(path)
        except InputError:  # moved or deleted since it was segmented
            continue
        if image.shape[:2] == shape:
            return image, note
    return None, "image not found"


def _read_scan(
    inputs: Sequence[Path], task: Task, grid: volumes.Grid, plane: str
) -> np.ndarray | None:
    """The slices [D, H, W, M] uint16 of a scan, or None if it is gone or has other voxels."""
    if not inputs:
        return None
    try:
        scan, own = volumes.read_image(inputs, len(task.modalities))
    except InputError:
        return None
    if not own.matches(grid):
        return None
    return volumes.to_slices(volumes.to_stored(scan, task.modalities), own, plane)


def _draw(
    image: np.ndarray | None, masks: Sequence[np.ndarray], spacing: tuple[float, float]
) -> bytes:
    """PNG of an image [H, W, C] (None: plain grey) with the outlines of two masks bool [H, W].

    Pixels are made square; the second line lies on top of the first.
    """
    shape = masks[0].shape
    ground = np.full((*shape, 1), _GREY, np.uint8) if image is None else image
    sides = np.array(shape) * spacing
    height, width = np.maximum(1, np.rint(sides * PICTURE_PIXELS / sides.max()))
    size = int(height), int(width)
    regions = np.stack([imaging.resize_labels(mask, size) for mask in masks], axis=-1)
    ground = imaging.resize_image(display.to_rgb(ground), size)
    buffer = io.BytesIO()
    Image.fromarray(display.overlay(ground, regions, None)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _figure(score: CaseScore, notes: Sequence[str], png: bytes) -> Figure:
    dice, iou = score.values["dice"], score.values["iou"]
    words = [score.class_name, f"Dice {dice:.4f}", f"IoU {iou:.4f}", *notes]
    words += ["empty prediction"] * score.prediction_empty
    words += ["empty reference"] * score.reference_empty
    return Figure(
        title=score.case,
        png=png,
        alt=f"{score.case}, {score.class_name}: outlines of reference and prediction",
        caption=", ".join(word for word in words if word),
    )
