"""How well a set of sampled masks matches a set of raters' masks, and how far the samples agree.

All numbers are read off the overlaps of pairs of masks, counted once. Two empty masks agree:
IoU = Dice = 1. S are n samples, Y are m raters, d = 1 - IoU.

*Generalised energy distance*, squared (Szekely and Rizzo 2013; Kohl et al. 2018, "A probabilistic
U-Net", section 3):

    D^2 = 2 E d(S, Y) - E d(S, S') - E d(Y, Y')

The expectations run over all pairs, a mask with itself included (the V-statistic, as in Kohl et
al.'s code), so D^2 >= 0, and 0 for equal sets. One rater makes the last term 0.

*Matched IoU* (Kohl et al. 2019, "A hierarchical probabilistic U-Net", appendix): both sets are
repeated to their least common multiple and paired one to one so that the sum of the IoUs is
largest; the mean IoU of the pairs. Unlike D^2 it gives nothing for diversity in the wrong places.

*Maximum Dice match*: the mean over raters of the Dice of the sample nearest to that rater. It never
falls when samples are added, so it compares sets of one size only.

*Diversity* and *sample Dice*: means of 1 - IoU and of Dice over the n (n - 1) / 2 pairs of
different samples (the U-statistic: the second term of D^2 is (n - 1) / n times the diversity).

*Interval IoU* is our reading of the "confidence interval" of the paper's table 5, which it does not
define but calls higher where the model is more certain. The ensemble's central 95 % interval of
masks reaches from the inner border, what at least 97.5 % of the samples mark, to the outer one,
what more than 2.5 % of them mark; the number is the inner area over the outer one: 1 for samples
that agree, 0 without common pixel. Below 40 samples that is the intersection of all over the union
of all, which falls as samples are added: compare ensembles of one size.

*Volume variation* is the coefficient of variation of the samples' areas: their standard deviation
(n - 1) over their mean; 0 if all are empty.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from scipy import optimize

from medsegdiff_jax.metrics.overlap import check_mask
from medsegdiff_jax.types import InputError

INTERVAL = 0.95


@dataclasses.dataclass(frozen=True)
class SetOverlaps:
    """Overlaps of all pairs of n samples and m raters of one case and class.

    Attributes:
      across: [n, m] IoU of each sample and rater.
      across_dice: [n, m] Dice of the same pairs.
      samples: [n, n] IoU of each two samples.
      samples_dice: [n, n] Dice of the same pairs.
      raters: [m, m] IoU of each two raters.
      areas: [n] pixels of each sample.
      inner: pixels that at least 97.5 % of the samples mark.
      outer: pixels that more than 2.5 % of the samples mark.
    """

    across: np.ndarray
    across_dice: np.ndarray
    samples: np.ndarray
    samples_dice: np.ndarray
    raters: np.ndarray
    areas: np.ndarray
    inner: int
    outer: int

    @property
    def energy_distance(self) -> float:
        """Squared generalised energy distance in [0, 2]; lower is better, 0 is best."""
        return float(self.samples.mean() + self.raters.mean() - 2 * self.across.mean())

    @property
    def matched_iou(self) -> float:
        """Mean IoU of the best one-to-one pairing in [0, 1]; higher is better."""
        n, m = self.across.shape
        common = np.lcm(n, m)
        repeated = np.tile(self.across, (common // n, common // m))
        pairs = optimize.linear_sum_assignment(repeated, maximize=True)
        return float(repeated[pairs].mean())

    @property
    def max_dice(self) -> float:
        """Mean over raters of the best sample's Dice in [0, 1]; higher is better."""
        return float(self.across_dice.max(axis=0).mean())

    @property
    def diversity(self) -> float:
        """Mean 1 - IoU of pairs of different samples in [0, 1]; NaN with one sample."""
        return 1.0 - _mean_of_pairs(self.samples)

    @property
    def sample_dice(self) -> float:
        """Mean Dice of pairs of different samples in [0, 1]; NaN with one sample."""
        return _mean_of_pairs(self.samples_dice)

    @property
    def interval_iou(self) -> float:
        """Inner over outer area of the samples' 95 % interval in [0, 1]; NaN with one sample."""
        if len(self.areas) < 2:
            return float("nan")
        return self.inner / self.outer if self.outer else 1.0

    @property
    def volume_variation(self) -> float:
        """Standard deviation of the samples' areas over their mean, >= 0; NaN with one sample."""
        if len(self.areas) < 2:
            return float("nan")
        return float(self.areas.std(ddof=1) / max(self.areas.mean(), 1 / len(self.areas)))


def set_overlaps(samples: Iterable[np.ndarray], references: Iterable[np.ndarray]) -> SetOverlaps:
    """Counts the overlaps of every pair of masks.

    Args:
      samples: [n, ...] in {0, 1}, masks drawn from the model; any iterable of masks, read once, of
        which no more than one bit per pixel is kept.
      references: [m, ...] in {0, 1}, one mask per rater; likewise.

    Raises:
      InputError: no sample or rater, mask shapes that differ, or a value other than 0 and 1.
    """
    sampled, shape, votes = _pack(samples, "samples")
    rated, expected, _ = _pack(references, "references")
    if shape != expected:
        raise InputError(f"samples: mask shape {shape} differs from the references' {expected}")
    across, across_dice = _overlaps(sampled, rated)
    among, among_dice = _overlaps(sampled, sampled)
    tail = (1 - INTERVAL) / 2 * len(sampled)
    return SetOverlaps(
        across=across,
        across_dice=across_dice,
        samples=among,
        samples_dice=among_dice,
        raters=_overlaps(rated, rated)[0],
        areas=np.array([_area(mask) for mask in sampled]),
        inner=int(np.count_nonzero(votes >= len(sampled) - tail)),
        outer=int(np.count_nonzero(votes > tail)),
    )


def generalized_energy_distance(
    samples: Iterable[np.ndarray], references: Iterable[np.ndarray]
) -> float:
    """`SetOverlaps.energy_distance`; arguments and errors as for `set_overlaps`."""
    return set_overlaps(samples, references).energy_distance


def _pack(
    masks: Iterable[np.ndarray], name: str
) -> tuple[list[np.ndarray], tuple[int, ...], np.ndarray]:
    """Masks as bits (8 pixels a byte), the shape of one, and the votes per pixel."""
    packed, shape, votes = [], (), np.zeros(0)
    for number, mask in enumerate(masks):
        mask = check_mask(mask, name)
        if number == 0:
            shape, votes = mask.shape, np.zeros(mask.shape, np.uint16)
        if mask.shape != shape:
            raise InputError(f"{name}: mask shape {mask.shape} differs from the first's {shape}")
        packed.append(np.packbits(mask))
        votes += mask
    if not packed or not votes.size:
        raise InputError("samples, references: each needs at least one mask")
    return packed, shape, votes


def _overlaps(some: list[np.ndarray], others: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """IoU and Dice of all pairs of packed masks, each [len(some), len(others)] float64."""
    common = np.array([[_area(a & b) for b in others] for a in some])
    total = np.array([_area(a) for a in some])[:, None] + np.array([_area(b) for b in others])
    iou = np.where(total > 0, common / np.maximum(total - common, 1), 1.0)
    return iou, np.where(total > 0, 2 * common / np.maximum(total, 1), 1.0)


def _area(packed: np.ndarray) -> int:
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def _mean_of_pairs(matrix: np.ndarray) -> float:
    upper = matrix[np.triu_indices(len(matrix), 1)]
    return float(upper.mean()) if upper.size else float("nan")
