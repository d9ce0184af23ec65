"""How well a set of sampled masks matches a set of raters' masks.

The squared generalised energy distance (Szekely and Rizzo 2013; Kohl et al. 2018, "A probabilistic
U-Net", section 3) is

    D^2 = 2 E d(S, Y) - E d(S, S') - E d(Y, Y'),   d = 1 - IoU

with S, S' samples and Y, Y' raters. The expectations run over all pairs, a mask with itself
included (the V-statistic, as in Kohl et al.'s code), so D^2 >= 0, and 0 for equal sets. Two empty
masks agree: IoU 1, d = 0.
"""

import numpy as np

from medsegdiff_jax.metrics.overlap import check_mask
from medsegdiff_jax.types import InputError


def generalized_energy_distance(samples: np.ndarray, references: np.ndarray) -> float:
    """Squared generalised energy distance of one case and class; lower is better, 0 is best.

    Args:
      samples: [n, ...] in {0, 1}, masks drawn from the model.
      references: [m, ...] in {0, 1}, one mask per rater; m = 1 makes its own term 0.

    Returns:
      float in [0, 2].

    Raises:
      InputError: no sample or rater, mask shapes that differ, or a value other than 0 and 1.
    """
    samples = check_mask(samples, "samples")
    references = check_mask(references, "references")
    if samples.shape[1:] != references.shape[1:]:
        raise InputError(
            f"samples: mask shape {samples.shape[1:]} differs from the references' "
            f"{references.shape[1:]}"
        )
    if samples.size == 0 or references.size == 0:
        raise InputError("samples, references: each needs at least one mask")
    across = _mean_distance(samples, references)
    return float(
        2 * across - _mean_distance(samples, samples) - _mean_distance(references, references)
    )


def _mean_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of 1 - IoU over all pairs of masks a [n, ...] and b [m, ...] bool."""
    a = a.reshape(len(a), -1).astype(np.float64)
    b = b.reshape(len(b), -1).astype(np.float64)
    common = a @ b.T  # counts below 2^53: exact
    union = a.sum(1)[:, None] + b.sum(1)[None, :] - common
    iou = np.where(union > 0, common / np.maximum(union, 1), 1.0)
    return 1.0 - iou.mean()
