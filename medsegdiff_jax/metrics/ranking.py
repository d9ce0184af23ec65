"""Whether the cases that a model is unsure of are those that it gets wrong.

The n cases are ordered from the most certain to the least. The *risk* at coverage k / n is the mean
error of the first k (Geifman and El-Yaniv 2017), AURC the mean of the n risks: what remains wrong
if the unsure cases go to a person, averaged over how many do. The best order is that by the error
itself; what AURC has above that order's is its *excess* (E-AURC; Geifman, Uziel and El-Yaniv 2019).
An order without information has the mean error as AURC. Equal uncertainties are in no order: the
risk is the mean over all orders of the tied cases.

Scores that say how unsure a model is of a case: 1 - the samples' mean Dice and the variation of
their volume (`distribution`), and `region_entropy`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.special import entr

from medsegdiff_jax.types import InputError

UNCERTAIN_BITS = 0.5


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How one uncertainty score orders the errors of n cases.

    Attributes:
      risk: [n] mean error of the k most certain cases, k = 1..n.
      optimal: [n] the same in the order of the errors.
      spearman: rank correlation of uncertainty and error in [-1, 1]; NaN where either is constant.
    """

    risk: np.ndarray
    optimal: np.ndarray
    spearman: float

    @property
    def coverage(self) -> np.ndarray:
        """[n] fraction of cases that is kept."""
        return np.arange(1, len(self.risk) + 1) / len(self.risk)

    @property
    def aurc(self) -> float:
        """Area under the risk-coverage curve; lower is better."""
        return float(self.risk.mean())

    @property
    def excess(self) -> float:
        """AURC above that of the best order; 0 is best."""
        return self.aurc - float(self.optimal.mean())

    @property
    def uninformed(self) -> float:
        """AURC of an order without information: the mean error."""
        return float(self.risk[-1])


def rank_errors(uncertainty: Sequence[float], error: Sequence[float]) -> Ranking | None:
    """Orders cases by their uncertainty and follows the error.

    Args:
      uncertainty: [N], larger = less certain; only the order counts.
      error: [N], for example 1 - Dice. Cases where either is NaN are left out.

    Returns:
      None with fewer than two cases left.

    Raises:
      InputError: different lengths.
    """
    uncertainty, error = np.asarray(uncertainty, np.float64), np.asarray(error, np.float64)
    if uncertainty.shape != error.shape:
        raise InputError(f"uncertainty: {uncertainty.shape} scores for {error.shape} errors")
    valid = ~np.isnan(uncertainty + error)
    uncertainty, error = uncertainty[valid], error[valid]
    if len(error) < 2:
        return None
    constant = np.ptp(uncertainty) == 0 or np.ptp(error) == 0
    return Ranking(
        risk=_risks(uncertainty, error),
        optimal=_risks(error, error),
        spearman=float("nan") if constant else float(stats.spearmanr(uncertainty, error).statistic),
    )


def region_entropy(probability: np.ndarray) -> float:
    """Mean entropy of a class where it is predicted or in doubt, in bits.

    Background far from anything would only measure how large the image is, so the mean runs over
    pixels with p >= 0.5 or at least half a bit of entropy, which together are those with
    p >= 0.11.

    Args:
      probability: [...] foreground probability in [0, 1].

    Returns:
      float in [0, 1]; 0 if there is no such pixel.
    """
    # Only candidates are turned to float64: h(0.1) < 0.5.
    p = np.asarray(probability)
    p = p[p >= 0.1].astype(np.float64)
    entropy = (entr(p) + entr(1 - p)) / np.log(2)
    region = (p >= 0.5) | (entropy >= UNCERTAIN_BITS)
    return float(entropy[region].mean()) if region.any() else 0.0


def _risks(order: np.ndarray, error: np.ndarray) -> np.ndarray:
    """[n] mean error of the first k cases by `order`; tied cases each count with their mean."""
    _, group, size = np.unique(order, return_inverse=True, return_counts=True)
    mean = np.bincount(group, error) / size
    return np.cumsum(np.repeat(mean, size)) / np.arange(1, len(error) + 1)
