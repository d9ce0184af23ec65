r"""Lesion-like images with a known distribution of annotations.

All lengths are in pixels of the native grid, 128 x 128. A case is a pure function of its id; every
random number comes from a generator seeded with (SEED, variant, split, number, purpose).

*Shape.* A star-shaped region r < R(theta) around a random centre, with

    R(theta) = R_0 exp(sum_{k=2}^{6} c_k cos(k theta + p_k)),  c_k ~ N(0, (0.22 / k)^2),
    R_0 ~ U(17, 30),

and the signed distance to its boundary to first order, d = (R - r) / sqrt(1 + (R' / r)^2),
positive inside. The variant "multiclass" has a core, the same contour shrunk to 0.4 to 0.6 and
shifted.

*Raters.* A rater moves the boundary outward by a_case (b + 0.5 n(x)) pixels, where b ~ N(0, 1) is
the rater's bias, n a smooth Gaussian field of mean 0, variance 1 and correlation length 8 pixels
(white noise filtered by a Gaussian of that width), and a_case ~ U(0.4, 2.0) pixels is the case's
ambiguity. A pixel is lesion if d(x) + a_case (b + 0.5 n(x)) > 0. Hence for one pixel

    P(lesion at x) = Phi(d(x) / (a_case sqrt(1.25))).

The core is drawn with a bias and a field of its own and counts only inside the lesion.
Raters are independent given the case. The border of an ambiguous case is also drawn softer, so the
ambiguity can be seen in the image.
"""

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.special import ndtr

from medsegdiff_jax.types import InputError, Task

SEED = 20240917
NATIVE_SIZE = 128
FIELD_LENGTH = 8.0
FIELD_WEIGHT = 0.5
AMBIGUITY = (0.4, 2.0)
SPLIT_SIZES = {"train": 400, "validation": 40, "test": 60}
RATERS = 5

TASKS = {
    "binary": Task(classes=("lesion",), label_values=(1,), exclusive=True, image_channels=3),
    "multiclass": Task(
        classes=("lesion", "core"), label_values=(1, 2), exclusive=True, image_channels=1
    ),
}

_VARIANTS = tuple(TASKS)
_SPLITS = tuple(SPLIT_SIZES)
_SHAPE, _IMAGE, _STORED_RATERS, _FRESH_RATERS = range(4)


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """The truth behind a case.

    Attributes:
      variant: "binary" or "multiclass".
      distances: [regions, N, N] float64, signed distance to each region's boundary in native
        pixels, positive inside; the lesion, then the core.
      ambiguity: a_case in native pixels.
    """

    variant: str
    distances: np.ndarray
    ambiguity: float


def case_id(variant: str, split: str, number: int) -> str:
    """The id of a case, e.g. "binary_test_007"."""
    return f"{variant}_{split}_{number:03d}"


def _address(case: str) -> tuple[int, int, int]:
    """(variant, split, number) of a case id as integers; InputError if there is no such case."""
    parts = case.split("_")
    if len(parts) == 3 and parts[0] in _VARIANTS and parts[1] in _SPLITS and parts[2].isdecimal():
        number = int(parts[2])
        if number < SPLIT_SIZES[parts[1]] and case == case_id(parts[0], parts[1], number):
            return _VARIANTS.index(parts[0]), _SPLITS.index(parts[1]), number
    raise InputError(f"no phantom case {case!r}")


def generator(case: str, purpose: int, seed: int = 0) -> np.random.Generator:
    """The random numbers of one purpose of one case."""
    return np.random.default_rng([SEED, *_address(case), purpose, seed])


def image_generator(case: str) -> np.random.Generator:
    """The random numbers of a case's appearance."""
    return generator(case, _IMAGE)


def smooth_field(rng: np.random.Generator, length: float, count: int | None = None) -> np.ndarray:
    """Gaussian fields of mean 0, variance 1 and a Gaussian correlation: [N, N] or [count, N, N].

    White noise through a Gaussian filter of width `length` keeps variance 1 / (4 pi length^2),
    which is divided out; the field is periodic.
    """
    shape = (NATIVE_SIZE, NATIVE_SIZE) if count is None else (count, NATIVE_SIZE, NATIVE_SIZE)
    white = rng.standard_normal(shape)
    smooth = ndimage.gaussian_filter(white, length, mode="wrap", axes=(-2, -1))
    return smooth * (2.0 * np.sqrt(np.pi) * length)


def _signed_distance(
    centre: np.ndarray, radius: float, amplitudes: np.ndarray, phases: np.ndarray
) -> np.ndarray:
    rows, columns = np.mgrid[:NATIVE_SIZE, :NATIVE_SIZE] + 0.5
    rows, columns = rows - centre[0], columns - centre[1]
    r, theta = np.hypot(rows, columns), np.arctan2(rows, columns)
    orders = np.arange(2, 2 + len(amplitudes))[:, None, None]
    angles = orders * theta + phases[:, None, None]
    weights = amplitudes[:, None, None]
    contour = radius * np.exp((weights * np.cos(angles)).sum(axis=0))
    slope = -contour * (weights * orders * np.sin(angles)).sum(axis=0)
    return (contour - r) / np.sqrt(1.0 + (slope / np.maximum(r, 0.25 * radius)) ** 2)


def anatomy(case: str) -> Anatomy:
    """Shape and ambiguity of a case; InputError if there is no such case."""
    rng = generator(case, _SHAPE)
    variant = case.split("_")[0]
    radius = rng.uniform(17.0, 30.0)
    centre = NATIVE_SIZE / 2 + rng.uniform(-1.0, 1.0, size=2) * (NATIVE_SIZE / 2 - 1.25 * radius)
    orders = np.arange(2, 7)
    amplitudes = rng.standard_normal(len(orders)) * 0.22 / orders
    phases = rng.uniform(0.0, 2 * np.pi, size=len(orders))
    distances = [_signed_distance(centre, radius, amplitudes, phases)]
    if variant == "multiclass":
        core = radius * rng.uniform(0.4, 0.6)
        shifted = centre + rng.uniform(-0.15, 0.15, size=2) * radius
        distances.append(_signed_distance(shifted, core, amplitudes * 0.7, phases))
    return Anatomy(variant, np.stack(distances), float(rng.uniform(*AMBIGUITY)))


def _draw_raters(shape: Anatomy, count: int, rng: np.random.Generator) -> np.ndarray:
    """Labels [count, N, N] uint8 of independent raters."""
    labels = np.zeros((count, NATIVE_SIZE, NATIVE_SIZE), dtype=np.uint8)
    inside = np.ones(labels.shape, dtype=bool)
    for value, distance in enumerate(shape.distances, start=1):
        bias = rng.standard_normal(count)[:, None, None]
        field = smooth_field(rng, FIELD_LENGTH, count)
        inside &= distance + shape.ambiguity * (bias + FIELD_WEIGHT * field) > 0
        labels[inside] = value
    return labels


def stored_raters(case: str) -> np.ndarray:
    """Labels [RATERS, N, N] uint8 of the raters in the dataset."""
    return _draw_raters(anatomy(case), RATERS, generator(case, _STORED_RATERS))


def fresh_raters(case: str, count: int, seed: int) -> np.ndarray:
    """Labels [count, N, N] uint8 of new raters from the same distribution.

    Args:
      case: id as in the dataset, e.g. "binary_test_007".
      count: how many raters.
      seed: other seeds give other raters; none of them is in the dataset.
    """
    return _draw_raters(anatomy(case), count, generator(case, _FRESH_RATERS, seed))


def rater_probability(case: str) -> np.ndarray:
    """Probability [regions, N, N] that a rater puts a pixel in the lesion, and in its core."""
    shape = anatomy(case)
    spread = shape.ambiguity * np.sqrt(1.0 + FIELD_WEIGHT**2)
    return np.cumprod(ndtr(shape.distances / spread), axis=0)
