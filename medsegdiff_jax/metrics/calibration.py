"""Whether probabilities mean what they say: calibration error, Brier score, temperature.

A pixel with foreground probability p and reference y counts as one event. Conventions:

- Bins are equally wide, [k / B, (k + 1) / B), the last one closed. The *reliability curve* is, per
  bin, the mean probability against the frequency of y = 1. The *expected calibration error* (Naeini
  et al. 2015; Guo et al. 2017) is the mean of |mean probability - frequency| over bins, weighted by
  their pixels. It is that of the foreground probability, not of the winning class.
- The *Brier score* (Brier 1950) is the mean of (p - y)^2.
- With several raters, y is the fraction who mark the pixel, and each rater's pixel is an event:
  the Brier score is then the mean of (p - y)^2 + y (1 - y), whose second term no model can avoid.
- Most pixels of an image are far from any border and easy, and there are many of them, so that the
  error over the whole image says little. A *border band* keeps the pixels whose nearest pixel on
  the other side of the reference's border is no further than a given distance.

*Temperature scaling* (Guo et al. 2017, section 4.2) divides the logits by one T > 0: above 1 for a
model that is too sure of itself.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage, optimize
from scipy.special import expit, log_expit, log_softmax, logit, softmax

from medsegdiff_jax.metrics.overlap import check_mask
from medsegdiff_jax.metrics.surface import check_spacing, within
from medsegdiff_jax.types import InputError

BINS = 15
BORDER_PIXELS = 5  # how far the border band reaches, in pixel sizes
TEMPERATURES = (0.01, 100.0)

_CLIP = 1e-6  # probabilities stay this far from 0 and 1 where their logit is taken
_CHUNK = 1 << 20  # pixels; their float64 copies are what costs memory


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Sums over pixels; those of several cases add.

    Attributes:
      pixels: [B] pixels per bin.
      probability: [B] sum of their probabilities.
      positive: [B] sum of their references.
      squared_error: sum of the squared errors of all.
    """

    pixels: np.ndarray
    probability: np.ndarray
    positive: np.ndarray
    squared_error: float

    def __add__(self, other: "Calibration") -> "Calibration":
        """The sums over the pixels of both."""
        return Calibration(
            self.pixels + other.pixels,
            self.probability + other.probability,
            self.positive + other.positive,
            self.squared_error + other.squared_error,
        )

    @property
    def total(self) -> int:
        """Pixels of all bins."""
        return int(self.pixels.sum())

    @property
    def confidence(self) -> np.ndarray:
        """[B] mean probability per bin, NaN in an empty one."""
        return self._per_pixel(self.probability)

    @property
    def frequency(self) -> np.ndarray:
        """[B] frequency of the reference per bin, NaN in an empty one."""
        return self._per_pixel(self.positive)

    @property
    def ece(self) -> float:
        """Expected calibration error in [0, 1], 0 is best; NaN without pixels."""
        if not self.total:
            return float("nan")
        return float(np.abs(self.probability - self.positive).sum() / self.total)

    @property
    def brier(self) -> float:
        """Brier score in [0, 1], 0 is best; NaN without pixels."""
        return self.squared_error / self.total if self.total else float("nan")

    def _per_pixel(self, sums: np.ndarray) -> np.ndarray:
        return np.where(self.pixels > 0, sums / np.maximum(self.pixels, 1), np.nan)


def measure_calibration(
    probability: np.ndarray,
    reference: np.ndarray,
    where: np.ndarray | None = None,
) -> Calibration:
    """Compares the foreground probability of one case and class with its reference.

    Args:
      probability: array of any shape in [0, 1].
      reference: array of the same shape in [0, 1]: a mask, or the fraction of the raters.
      where: bool array of the same shape, the pixels that count; None for all.

    Raises:
      InputError: different shapes, or values outside [0, 1].
    """
    probability, reference = _check_pair(probability, reference)
    if where is not None:
        if np.shape(where) != probability.shape:
            raise InputError(f"where: shape {np.shape(where)} is not {probability.shape}")
        probability, reference = probability[where], reference[where]
    probability, reference = probability.reshape(-1), reference.reshape(-1)
    sums = Calibration(np.zeros(BINS, np.int64), np.zeros(BINS), np.zeros(BINS), 0.0)
    for start in range(0, probability.size, _CHUNK):
        p = probability[start : start + _CHUNK].astype(np.float64)
        y = reference[start : start + _CHUNK].astype(np.float64)
        index = np.minimum((p * BINS).astype(np.int64), BINS - 1)
        count, of_p, of_y = (np.bincount(index, weights, BINS) for weights in (None, p, y))
        sums += Calibration(count, of_p, of_y, float(((p - y) ** 2 + y * (1 - y)).sum()))
    return sums


def border_band(reference: np.ndarray, spacing: Sequence[float], distance: float) -> np.ndarray:
    """Pixels near the border of a mask, on both sides of it.

    Args:
      reference: [H, W] or [D, H, W] in {0, 1}.
      spacing: pixel size along each axis.
      distance: to the centre of the nearest pixel on the other side, at most, in the unit of the
        spacing: the size of a pixel keeps those that touch the border.

    Returns:
      bool, like the reference; nothing for a mask without border, empty or full.
    """
    reference = check_mask(reference, "reference")
    spacing = check_spacing(spacing, reference.ndim)
    band = np.zeros(reference.shape, np.bool_)
    if not reference.any():
        return band
    # Nothing further away than that can be in the band: far less to compute.
    (box,) = ndimage.find_objects(reference.astype(np.uint8))
    reach = [math.ceil(distance / size) + 1 for size in spacing]
    box = tuple(
        slice(max(part.start - more, 0), part.stop + more)
        for part, more in zip(box, reach, strict=True)
    )
    inside = reference[box]
    if not inside.all():
        to_other_side = np.where(
            inside,
            ndimage.distance_transform_edt(inside, sampling=spacing),
            ndimage.distance_transform_edt(~inside, sampling=spacing),
        )
        band[box] = within(to_other_side, distance)
    return band


def fit_temperature(
    probability: np.ndarray, reference: np.ndarray, *, one_hot: bool = False
) -> float:
    """The temperature with the least negative log-likelihood: one number for all pixels.

    To be fitted on validation cases. The likelihood is unimodal in T (convex in 1 / T).

    Args:
      probability: [...] in [0, 1], each a Bernoulli variable of its own; if one_hot [..., K],
        which sum to 1 over K.
      reference: array of the same shape in [0, 1]: masks, or fractions of raters.
      one_hot: see `probability`; True for several exclusive classes (`Task.one_hot`).

    Returns:
      T in TEMPERATURES; an end of it where no inner one is best, for example if all is right.

    Raises:
      InputError: different shapes, values outside [0, 1], or no pixel.
    """
    probability, reference = _check_pair(probability, reference)
    if not probability.size:
        raise InputError("probability: no pixel to fit a temperature to")
    y = reference.astype(np.float64)
    logits = _logits(probability, one_hot)

    def loss(log_temperature: float) -> float:
        z = logits / math.exp(log_temperature)
        if one_hot:
            return -float((y * log_softmax(z, axis=-1)).sum(-1).mean())
        return -float((y * log_expit(z) + (1 - y) * log_expit(-z)).mean())

    bounds = tuple(math.log(end) for end in TEMPERATURES)
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x)


def apply_temperature(
    probability: np.ndarray, temperature: float, *, one_hot: bool = False
) -> np.ndarray:
    """Probabilities whose logits are divided by the temperature.

    Args:
      probability: [...] in [0, 1]; if one_hot [..., K], which sum to 1 over K.
      temperature: > 0; 1 changes nothing but values within 1e-6 of 0 and 1.
      one_hot: see `probability`; True for several exclusive classes (`Task.one_hot`).

    Returns:
      float64, like the probability.

    Raises:
      InputError: a temperature that is not positive.
    """
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature: {temperature} is not a positive number")
    z = _logits(np.asarray(probability), one_hot) / temperature
    return softmax(z, axis=-1) if one_hot else expit(z)


def _logits(probability: np.ndarray, one_hot: bool) -> np.ndarray:
    p = np.clip(probability.astype(np.float64), _CLIP, 1 - _CLIP)
    return np.log(p) if one_hot else logit(p)


def _check_pair(probability: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probability, reference = np.asarray(probability), np.asarray(reference)
    if probability.shape != reference.shape:
        raise InputError(
            f"probability: shape {probability.shape} differs from the reference's {reference.shape}"
        )
    for name, values in (("probability", probability), ("reference", reference)):
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise InputError(f"{name}: must be in [0, 1]")
    return probability, reference
