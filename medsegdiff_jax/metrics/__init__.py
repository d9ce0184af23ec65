"""Metrics on masks, in float64 on the host; undefined values are NaN until `aggregate` decides."""

from medsegdiff_jax.metrics.distribution import generalized_energy_distance
from medsegdiff_jax.metrics.overlap import dice, iou
from medsegdiff_jax.metrics.surface import SurfaceDistances, hd95, surface_distances

__all__ = [
    "SurfaceDistances",
    "dice",
    "generalized_energy_distance",
    "hd95",
    "iou",
    "surface_distances",
]
