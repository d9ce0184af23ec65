"""Overlap of two masks: Dice = 2 |A n B| / (|A| + |B|), IoU = |A n B| / |A u B| (Jaccard).

Sensitivity is the share of the reference that is found, precision that of the prediction that is
right.
"""

import numpy as np

from medsegdiff_jax.types import InputError


def dice(
    prediction: np.ndarray, reference: np.ndarray, axis: int | tuple[int, ...] | None = None
) -> float | np.ndarray:
    """Dice coefficient.

    Args:
      prediction: mask of any shape, in {0, 1}.
      reference: mask of the same shape.
      axis: axes to count over; None counts over all. axis=(0, 1) on [H, W, K] gives one per class.

    Returns:
      float (or array over the remaining axes) in [0, 1]; NaN where both masks are empty.

    Raises:
      InputError: different shapes, or a value other than 0 and 1.
    """
    common, predicted, marked = _counts(prediction, reference, axis)
    return _ratio(2 * common, predicted + marked)


def iou(
    prediction: np.ndarray, reference: np.ndarray, axis: int | tuple[int, ...] | None = None
) -> float | np.ndarray:
    """Intersection over union; arguments, result and errors as for `dice`."""
    common, predicted, marked = _counts(prediction, reference, axis)
    return _ratio(common, predicted + marked - common)


def sensitivity(
    prediction: np.ndarray, reference: np.ndarray, axis: int | tuple[int, ...] | None = None
) -> float | np.ndarray:
    """TP / (TP + FN), also called recall; as `dice`, but NaN where the reference is empty."""
    common, _, marked = _counts(prediction, reference, axis)
    return _ratio(common, marked)


def precision(
    prediction: np.ndarray, reference: np.ndarray, axis: int | tuple[int, ...] | None = None
) -> float | np.ndarray:
    """TP / (TP + FP), the positive predictive value; NaN where the prediction is empty."""
    common, predicted, _ = _counts(prediction, reference, axis)
    return _ratio(common, predicted)


def check_masks(prediction: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two masks as bool arrays of the same shape.

    Raises:
      InputError: different shapes, or a value other than 0 and 1 (probabilities and label maps must
        be turned into masks first; nothing is thresholded here).
    """
    prediction = check_mask(prediction, "prediction")
    reference = check_mask(reference, "reference")
    if prediction.shape != reference.shape:
        raise InputError(
            f"prediction: shape {prediction.shape} differs from the reference's {reference.shape}"
        )
    return prediction, reference


def check_mask(mask: np.ndarray, name: str) -> np.ndarray:
    """A {0, 1} array of any dtype as bool; InputError that names the argument otherwise."""
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ and not ((mask == 0) | (mask == 1)).all():
        raise InputError(f"{name}: a mask must hold only 0 and 1")
    return mask.astype(np.bool_)


def _counts(
    prediction: np.ndarray, reference: np.ndarray, axis: int | tuple[int, ...] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of both masks in common, of the prediction, and of the reference, int64 each."""
    prediction, reference = check_masks(prediction, reference)
    masks = (prediction & reference, prediction, reference)
    return tuple(mask.sum(axis, dtype=np.int64) for mask in masks)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> float | np.ndarray:
    ratio = np.where(denominator > 0, numerator / np.maximum(denominator, 1), np.nan)
    return float(ratio) if ratio.ndim == 0 else ratio
