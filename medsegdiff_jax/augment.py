"""Random changes of a training example: one transform for the image and its labels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from medsegdiff_jax.types import InputError, check_at_least


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How strongly examples are changed.

    Attributes:
      flip: mirror each axis with probability 0.5.
      rotate_degrees: rotation angle, uniform in +- this.
      scale: zoom factor, log-uniform in [1 / (1 + scale), 1 + scale].
      translate: shift of each axis as a fraction of the side, uniform in +- this.
      gamma: exponent of the intensities, log-uniform in [1 / (1 + gamma), 1 + gamma].
      intensity: contrast, brightness and an illumination ramp across the image, each uniform in
        +- this (per-image z-scoring undoes the first two but not the ramp).
      probability: chance of the affine change, of the gamma and of the intensity change.
    """

    flip: bool = True
    rotate_degrees: float = 180.0
    scale: float = 0.2
    translate: float = 0.1
    gamma: float = 0.3
    intensity: float = 0.2
    probability: float = 0.8

    def __post_init__(self) -> None:
        """Checks the ranges; InputError names the field."""
        for field in ("rotate_degrees", "scale", "translate", "gamma", "intensity", "probability"):
            check_at_least(f"config field data.augment.{field}", getattr(self, field), 0)
        if self.probability > 1:
            raise InputError(
                f"config field data.augment.probability: {self.probability} is not in [0, 1]"
            )

    @classmethod
    def from_config(cls, fields: Mapping[str, Any]) -> "Augmentation":
        """Reads the config node `data.augment`; InputError on an unknown field."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in fields:
            if name not in known:
                raise InputError(
                    f"config field data.augment.{name}: unknown, not in {sorted(known)}"
                )
        return cls(**dict(fields))


def augment(
    image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, settings: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """Changes one example at random.

    Geometry (flip, rotation, zoom, shift) is one affine map for the image (bilinear) and the labels
    (nearest); what it brings in from outside is a mirror image of both. Gamma and intensity change
    the image alone.

    Args:
      image: float32 [H, W, C] in [0, 1].
      labels: integers [..., H, W], e.g. of several raters; all go the same way.
      rng: the example's own generator.
      settings: the strengths.

    Returns:
      image float32 [H, W, C] (may leave [0, 1] by the intensity change) and labels [..., H, W].
    """
    if settings.flip:
        for axis in (0, 1):
            if rng.random() < 0.5:
                image, labels = np.flip(image, axis), np.flip(labels, axis - 2)
    if rng.random() < settings.probability:
        matrix, offset = _random_affine(image.shape[:2], rng, settings)
        image = _transform(image, matrix, offset)
        labels = _transform_labels(labels, matrix, offset)
    if rng.random() < settings.probability:
        image = np.clip(image, 0.0, 1.0) ** np.float32(_log_uniform(rng, settings.gamma))
    if rng.random() < settings.probability:
        image = _intensity(image, rng, settings.intensity)
    return np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(labels)


def _log_uniform(rng: np.random.Generator, strength: float) -> float:
    return float(np.exp(rng.uniform(-1.0, 1.0) * np.log1p(strength)))


def _random_affine(
    shape: tuple[int, int], rng: np.random.Generator, settings: Augmentation
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix [2, 2] and offset [2] that take output to input pixel coordinates."""
    angle = np.deg2rad(rng.uniform(-1.0, 1.0) * settings.rotate_degrees)
    zoom = _log_uniform(rng, settings.scale)
    shift = rng.uniform(-1.0, 1.0, size=2) * settings.translate * np.asarray(shape)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) / zoom
    centre = (np.asarray(shape) - 1) / 2
    return matrix, centre - matrix @ (centre + shift)


def _transform(image: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    planes = [
        ndimage.affine_transform(image[..., c], matrix, offset, order=1, mode="mirror")
        for c in range(image.shape[-1])
    ]
    return np.stack(planes, axis=-1)


def _transform_labels(labels: np.ndarray, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
    maps = [
        ndimage.affine_transform(one, matrix, offset, order=0, mode="mirror")
        for one in labels.reshape(-1, *labels.shape[-2:])
    ]
    return np.stack(maps).reshape(labels.shape)


def _intensity(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    contrast, brightness, along_rows, along_columns = rng.uniform(-1.0, 1.0, size=4) * strength
    rows = np.linspace(-1.0, 1.0, image.shape[0], dtype=np.float32)[:, None, None]
    columns = np.linspace(-1.0, 1.0, image.shape[1], dtype=np.float32)[None, :, None]
    gain = np.float32(1 + contrast) + np.float32(along_rows) * rows
    return image * (gain + np.float32(along_columns) * columns) + np.float32(brightness)
