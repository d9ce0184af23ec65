"""Distances between the surfaces of two masks, computed once; HD95, ASSD and NSD are read off them.

Conventions (those of MONAI; libraries differ by up to several pixels):
- The surface of a mask is its own pixels that one erosion with the 4-neighbour (3-D: 6-neighbour)
  cross removes. What lies beyond the image counts as outside, so mask pixels on the image border
  belong to the surface.
- A directed set holds, for each surface pixel of one mask, the distance between pixel centres to
  the nearest surface pixel of the other, in the units of `spacing`.
- HD95 is the larger of the two directed 95th percentiles (linear interpolation), not the percentile
  of the pooled distances; HD the larger of the two maxima (Huttenlocher et al. 1993); ASSD the mean
  of the pooled distances.
- NSD (normalised surface distance, or surface Dice; Nikolov et al. 2018, "Deep learning to achieve
  clinically applicable segmentation of head and neck anatomy") is the share of the pixels of both
  surfaces that lie within a tolerance of the other.
- If either mask is empty all are NaN; `aggregate` says what such a case costs.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medsegdiff_jax.metrics.overlap import check_masks
from medsegdiff_jax.types import InputError

_ROUNDING = 1e-6  # relative; float32 keeps a spacing to 1e-7


@dataclasses.dataclass(frozen=True)
class SurfaceDistances:
    """Directed distances between two surfaces, in the units of the spacing.

    Attributes:
      to_reference: [n] float64, from each surface pixel of the prediction; empty if either mask is.
      to_prediction: [m] float64, from each surface pixel of the reference; empty if either mask is.
    """

    to_reference: np.ndarray
    to_prediction: np.ndarray

    @property
    def hd(self) -> float:
        """Hausdorff distance, NaN if either mask is empty."""
        return self._largest_percentile(100.0)

    @property
    def hd95(self) -> float:
        """Larger of the two directed 95th percentiles, NaN if either mask is empty."""
        return self._largest_percentile(95.0)

    @property
    def assd(self) -> float:
        """Average symmetric surface distance, NaN if either mask is empty."""
        distances = self._pooled()
        return float(distances.mean()) if distances.size else float("nan")

    def nsd(self, tolerance: float) -> float:
        """Share of both surfaces within `tolerance` (units of the spacing) of the other, in [0, 1].

        NaN if either mask is empty.
        """
        near = within(self._pooled(), tolerance)
        return float(near.mean()) if near.size else float("nan")

    def _pooled(self) -> np.ndarray:
        return np.concatenate([self.to_reference, self.to_prediction])

    def _largest_percentile(self, percentile: float) -> float:
        if not self.to_reference.size:
            return float("nan")
        directed = (self.to_reference, self.to_prediction)
        return float(max(np.percentile(distances, percentile) for distances in directed))


def surface_distances(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> SurfaceDistances:
    """Directed surface distances of two masks.

    Args:
      prediction: [H, W] or [D, H, W] (any axis order) in {0, 1}.
      reference: mask of the same shape.
      spacing: pixel size along each axis of the arrays, for example in mm; (1, 1) for pixels.

    Raises:
      InputError: different shapes, values other than 0 and 1, or a spacing that is not one positive
        number per axis.
    """
    prediction, reference = check_masks(prediction, reference)
    spacing = check_spacing(spacing, prediction.ndim)
    if not prediction.any() or not reference.any():
        return SurfaceDistances(np.empty(0), np.empty(0))
    # Outside the common bounding box nothing is set, which is also how the erosion sees its border;
    # so the box alone gives the same surfaces and distances as the whole image.
    box = ndimage.find_objects((prediction | reference).astype(np.uint8))[0]
    prediction_surface = _surface(prediction[box])
    reference_surface = _surface(reference[box])
    return SurfaceDistances(
        to_reference=_distance_to(reference_surface, spacing)[prediction_surface],
        to_prediction=_distance_to(prediction_surface, spacing)[reference_surface],
    )


def hd95(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> float:
    """95th percentile Hausdorff distance in the units of spacing; see `surface_distances`.

    Returns NaN if either mask is empty.
    """
    return surface_distances(prediction, reference, spacing).hd95


def check_spacing(spacing: Sequence[float], axes: int) -> tuple[float, ...]:
    """The spacing as floats; InputError if it is not one positive number per axis."""
    spacing = tuple(float(size) for size in spacing)
    if len(spacing) != axes or not all(0 < size < np.inf for size in spacing):
        raise InputError(f"spacing: {spacing} is not one positive number for each of {axes} axes")
    return spacing


def within(distances: np.ndarray, limit: float) -> np.ndarray:
    """Which distances are at most `limit`, give or take the rounding of a spacing.

    NIfTI keeps affines in float32: where 5 voxels of 0.4 mm are meant, 2.00000003 mm are found.
    """
    return distances <= limit * (1 + _ROUNDING)


def _surface(mask: np.ndarray) -> np.ndarray:
    cross = ndimage.generate_binary_structure(mask.ndim, 1)
    return mask & ~ndimage.binary_erosion(mask, cross, border_value=0)


def _distance_to(surface: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    return ndimage.distance_transform_edt(~surface, sampling=spacing)
