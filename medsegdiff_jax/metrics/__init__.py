"""Metrics on masks, in float64 on the host; undefined values are NaN until `aggregate` decides."""

from medsegdiff_jax.metrics.calibration import (
    Calibration,
    apply_temperature,
    border_band,
    fit_temperature,
    measure_calibration,
)
from medsegdiff_jax.metrics.distribution import (
    SetOverlaps,
    generalized_energy_distance,
    set_overlaps,
)
from medsegdiff_jax.metrics.overlap import dice, iou, precision, sensitivity
from medsegdiff_jax.metrics.ranking import Ranking, rank_errors, region_entropy
from medsegdiff_jax.metrics.surface import SurfaceDistances, hd95, surface_distances

__all__ = [
    "Calibration",
    "Ranking",
    "SetOverlaps",
    "SurfaceDistances",
    "apply_temperature",
    "border_band",
    "measure_calibration",
    "dice",
    "fit_temperature",
    "generalized_energy_distance",
    "hd95",
    "iou",
    "precision",
    "rank_errors",
    "region_entropy",
    "sensitivity",
    "set_overlaps",
    "surface_distances",
]
