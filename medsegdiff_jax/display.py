"""Pictures of a case for people: mask, overlay, probability in grey, animation.

Arrays in, arrays out. Nothing here is read back by the program.
"""

import dataclasses

import numpy as np
from scipy import ndimage

from medsegdiff_jax import fusion, imaging
from medsegdiff_jax.types import Task

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


def to_rgb(image: np.ndarray) -> np.ndarray:
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
    return mask[..., task.foreground]


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
      image: uint8 [H, W, 3] from `to_rgb`.
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
      image: uint8 [H, W, 3] from `to_rgb`.
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
    """How a sample came about: noisy mask, what it says of the clean one, and its outline.

    A frame per step, and a last one without noise.

    Args:
      image: uint8 [H, W, 3] from `to_rgb`.
      path: [N, S, S, 2 K] noisy masks of unit variance and probabilities, see `CaseResult`.
      task: says what the channels mean.

    Returns:
      N + 1 uint8 [h, 3 w, 3], longer side of a panel SHEET_PIXELS.
    """
    scale = SHEET_PIXELS / max(image.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in image.shape[:2])
    small = imaging.resize_image(image, size)
    panels = []
    for noisy, chance in zip(*np.split(path, 2, axis=-1), strict=True):
        chance = imaging.resize_probability(chance, size)
        labels = imaging.mask_to_labels(fusion.decide(chance, task), task)
        # Two standard deviations from black to grey and from grey to white.
        noise = imaging.resize_probability(np.clip(0.5 + noisy[..., -1:] / 4, 0, 1), size)[..., 0]
        outlined = overlay(small, regions_of(labels, task), None)
        panels.append([grey(noise), grey(foreground(chance, task)), outlined])
    _, clean, outlined = panels[-1]
    return [np.hstack(one) for one in (*panels, [clean, clean, outlined])]
