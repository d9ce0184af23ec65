"""From an ensemble of masks to one probability: mean, blend, vote, STAPLE; decisions; uncertainty.

*Blend.* The mean of n samples and the condition model's own probability both estimate p(mask |
image). The first is noisy (the n samples) and knows what the diffusion network has learned; the
second is not noisy and errs in its own way. Half of each is about as good as the better of the two
(docs/results.md, which says how it was chosen). It costs nothing, since the condition model has
been evaluated anyway.

*STAPLE* (Warfield, Zou and Wells 2004, "Simultaneous truth and performance level estimation
(STAPLE)", section II, binary case). Rater j says D_ij in {0, 1} at pixel i; the truth T_i is
hidden. A rater is described by its sensitivity p_j = P(D_ij = 1 | T_i = 1) and its specificity
q_j = P(D_ij = 0 | T_i = 0); decisions are independent given the truth, and g = P(T_i = 1).
Expectation-maximisation alternates

    E: W_i = P(T_i = 1 | D_i) = a_i / (a_i + b_i)
         a_i = g prod_j p_j^D_ij (1 - p_j)^(1 - D_ij)
         b_i = (1 - g) prod_j q_j^(1 - D_ij) (1 - q_j)^D_ij
    M: p_j = sum_i W_i D_ij / sum_i W_i
       q_j = sum_i (1 - W_i) (1 - D_ij) / sum_i (1 - W_i)

Start and stop are those of ITK's STAPLEImageFilter: W starts as the mean vote, g is its mean and
stays, the M-step comes first, and the iteration ends when every p and q moved by less than 1e-7.
(One pass of a reweighted mean, which some code calls STAPLE, is only the squared mean vote.) Three
differences in computation, none in the fixed point: pixels with the same votes share W, so the sums
run over distinct vote patterns; products are sums of logarithms, with 0 replaced by 1e-300; and
raters who agree everywhere (all empty, all full, a single rater: where a mask is all empty or full,
ITK divides 0 by 0) are returned as they are with p = q = 1.

*Uncertainty* is the entropy of the mean member probability in bits, divided by its largest value.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import entr, expit

from medsegdiff_jax.types import InputError, Task, check_one_of, class_mask

METHODS = ("mean", "vote", "staple", "blend")
OF_PROBABILITIES = ("mean", "blend")  # not of decisions

_STAPLE_TOLERANCE = 1e-7
_STAPLE_MAX_ITERATIONS = 10_000
_TINY = 1e-300


@dataclasses.dataclass(frozen=True)
class Staple:
    """Result of `staple`.

    Attributes:
      probability: [...] float64, P(truth = 1 | all decisions).
      sensitivity: [raters] float64, P(decision = 1 | truth = 1).
      specificity: [raters] float64, P(decision = 0 | truth = 0).
      iterations: EM iterations made; 0 if all raters agree everywhere.
    """

    probability: np.ndarray
    sensitivity: np.ndarray
    specificity: np.ndarray
    iterations: int


def decide(probability: np.ndarray, task: Task) -> np.ndarray:
    """Probability [..., K] -> mask [..., K] uint8 in {0, 1}: what is probable (see `decision`).

    One-hot tasks: the most probable channel (the first of equals). Others: >= 0.5 per channel.
    """
    probability = np.asarray(probability)
    if task.one_hot:
        best = np.argmax(probability, axis=-1)
        return (best[..., None] == np.arange(probability.shape[-1])).astype(np.uint8)
    return (probability >= 0.5).astype(np.uint8)


def majority(raters: Sequence[np.ndarray], task: Task) -> np.ndarray:
    """Label maps of several raters -> one: the most frequent class per pixel, or region by region.

    The same as `decide` of the mean of their masks, but K masks are never held at once.

    Args:
      raters: label maps [...] of one shape, at least one.
      task: one-hot tasks take the most frequent label (at a tie background, then the earlier
        class); others each class or region that at least half of the raters mark.

    Returns:
      [...] in the dtype of the first.
    """
    first = raters[0]
    if len(raters) == 1:
        return first
    result = np.zeros_like(first)
    if not task.one_hot:
        for index, value in enumerate(task.label_values):
            votes = sum(class_mask(labels, task, index).astype(np.int32) for labels in raters)
            result += (2 * votes >= len(raters)) * first.dtype.type(value)
        return result
    most = sum((labels == 0).astype(np.int32) for labels in raters)
    for value in task.label_values:
        votes = sum((labels == value).astype(np.int32) for labels in raters)
        wins = votes > most
        result[wins], most[wins] = value, votes[wins]
    return result


def mean(probabilities: np.ndarray) -> np.ndarray:
    """Mean over members: [n, ...] in [0, 1] -> [...] float64."""
    return np.mean(probabilities, axis=0, dtype=np.float64)


def vote(decisions: np.ndarray) -> np.ndarray:
    """Fraction of members that say 1: [n, ...] in {0, 1} -> [...] float64."""
    return np.mean(_as_decisions(decisions), axis=0, dtype=np.float64)


def staple(decisions: np.ndarray) -> Staple:
    """Hidden truth and rater performance by EM (Warfield et al. 2004; see the module docstring).

    Args:
      decisions: [raters, ...] in {0, 1} (bool or numbers), at least one rater and one pixel.

    Returns:
      Staple; every value is finite.

    Raises:
      InputError: a value other than 0 and 1, or no rater or pixel.
    """
    decisions = _as_decisions(decisions)
    votes = decisions.reshape(len(decisions), -1)
    if (votes == votes[0]).all():
        perfect = np.ones(len(votes))
        return Staple(decisions[0].astype(np.float64), perfect, perfect.copy(), 0)
    _, first, pattern, count = np.unique(
        np.packbits(votes, axis=0), axis=1, return_index=True, return_inverse=True,
        return_counts=True,
    )  # fmt: skip
    weight, sensitivity, specificity, iterations = _staple_em(
        votes[:, first].astype(np.float64), count.astype(np.float64)
    )
    probability = weight[pattern.reshape(-1)].reshape(decisions.shape[1:])
    return Staple(probability, sensitivity, specificity, iterations)


def check_method(method: str, segments: bool) -> None:
    """Raises InputError for an unknown method, or a blend of a network that lacks a part of it.

    Args:
      method: of fusion.
      segments: whether the condition model has a segmentation of its own.
    """
    check_one_of("fusion", method, METHODS)
    if method == "blend" and not segments:
        raise InputError(
            "fusion: a blend needs a condition model with a segmentation of its own, which this "
            "network does not have; use mean"
        )


def fuse(
    members: np.ndarray, task: Task, method: str, condition_probability: np.ndarray | None = None
) -> np.ndarray:
    """Ensembles -> one probability per case, pixel and channel.

    Args:
      members: [n, ..., H, W, K] probabilities in [0, 1], of one case or of many.
      task: decides how members are binarised; one-hot tasks stay normalised over K.
      method: "mean" of the probabilities, "blend" (half of that and half of what the condition
        model says), "vote" (mean of the members' decisions), or "staple" of the decisions, run on
        each case and channel alone (one-hot channels: one against the rest, then renormalised over
        K; a pixel that every class rejects falls back to the vote).
      condition_probability: [..., H, W, K] of the condition model; only "blend" looks at it.

    Returns:
      [..., H, W, K] float32 in [0, 1].

    Raises:
      InputError: unknown method, no member, or a blend without `condition_probability`.
    """
    check_method(method, condition_probability is not None)
    members = np.asarray(members)
    if not len(members):
        raise InputError("members: there are none to fuse")
    if method == "mean":
        return mean(members).astype(np.float32)
    if method == "blend":
        return ((mean(members) + np.asarray(condition_probability)) / 2).astype(np.float32)
    decisions = decide(members, task)
    fused = vote(decisions)
    if method == "staple":
        counted = fused
        fused = np.empty_like(counted)
        for *case, channel in np.ndindex(*counted.shape[:-3], counted.shape[-1]):
            plane = (*case, ..., channel)
            fused[plane] = staple(decisions[:, *plane]).probability
        if task.one_hot:
            total = fused.sum(-1, keepdims=True)
            fused = np.where(total > _TINY, fused / np.maximum(total, _TINY), counted)
    return fused.astype(np.float32)


class RunningFusion:
    """`fuse` of the first n members of one case, n = 1, 2, ..., as they come.

    Means and votes are running sums; STAPLE begins anew with every member. Of a blend it is the
    part that the members have in it: their mean.
    """

    def __init__(self, task: Task, method: str):
        """Starts empty. Raises InputError for an unknown method."""
        check_method(method, segments=True)
        self._task, self._method = task, method
        self._members: list[np.ndarray] = []
        self._sum: np.ndarray | float = 0.0
        self._count = 0

    def add(self, member: np.ndarray) -> np.ndarray:
        """A member's probabilities [H, W, K] -> those of the ensemble with it, float32."""
        self._count += 1
        if self._method == "staple":
            self._members.append(member)
            return fuse(np.stack(self._members), self._task, "staple")
        counted = member if self._method in OF_PROBABILITIES else decide(member, self._task)
        self._sum = self._sum + counted.astype(np.float64)
        return (self._sum / self._count).astype(np.float32)


def uncertainty(members: np.ndarray, task: Task) -> np.ndarray:
    """Predictive entropy of the ensemble.

    Args:
      members: [n, ..., K] probabilities in [0, 1]; sum to 1 over K if task.one_hot.
      task: one-hot: entropy over the K classes divided by log2 K. Otherwise the binary entropy of
        each channel in bits, the largest over the channels.

    Returns:
      [...] float32 in [0, 1]; 0 = all members certain and agreed.
    """
    p = mean(np.asarray(members))
    if task.one_hot:
        entropy = entr(p).sum(-1) / np.log(p.shape[-1])
    else:
        entropy = ((entr(p) + entr(1 - p)) / np.log(2)).max(-1)
    return np.clip(entropy, 0.0, 1.0).astype(np.float32)


def _as_decisions(decisions: np.ndarray) -> np.ndarray:
    """Any {0, 1} array -> bool; InputError otherwise."""
    decisions = np.asarray(decisions)
    if decisions.ndim == 0 or decisions.size == 0:
        raise InputError("decisions: needs at least one rater and one pixel")
    if decisions.dtype != np.bool_ and not ((decisions == 0) | (decisions == 1)).all():
        raise InputError("decisions: must hold only 0 and 1 (apply fusion.decide first)")
    return decisions.astype(np.bool_)


def _staple_em(
    votes: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """EM over vote patterns.

    Args:
      votes: [raters, patterns] float64 in {0, 1}, distinct columns.
      count: [patterns] float64, pixels with each pattern.

    Returns:
      W [patterns], sensitivity [raters], specificity [raters], iterations.
    """
    weight = votes.mean(0)
    other = 1 - weight
    prior = weight @ count / count.sum()
    prior_log_odds = np.log(prior) - np.log1p(-prior)
    previous = np.full((2, len(votes)), -np.inf)
    iteration, moving = 0, True
    while moving and iteration < _STAPLE_MAX_ITERATIONS:
        iteration += 1
        # The complements are summed, not subtracted from 1, so that neither rounds to 0.
        positive = np.stack([votes, 1 - votes]) @ (count * weight)
        negative = np.stack([1 - votes, votes]) @ (count * other)
        # Over their own sum: a total in another order can round a rate of 1 upwards.
        sensitivity, miss = positive / np.maximum(positive.sum(axis=0), _TINY)
        specificity, false_alarm = negative / np.maximum(negative.sum(axis=0), _TINY)
        log_says_one = _log(sensitivity) - _log(false_alarm)
        log_says_zero = _log(miss) - _log(specificity)
        log_odds = prior_log_odds + log_says_one @ votes + log_says_zero @ (1 - votes)
        weight, other = expit(log_odds), expit(-log_odds)
        current = np.stack([sensitivity, specificity])
        moving = (np.abs(current - previous) >= _STAPLE_TOLERANCE).any()
        previous = current
    return weight, sensitivity, specificity, iteration


def _log(rate: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(rate, _TINY))
