"""From probabilities to a mask: what is more probable, or what promises the higher Dice.

*Expected Dice.* Let p_i be the probability that pixel i belongs to the class. What Dice a mask S
can expect with the unknown truth is taken to be the ratio of the expectations,

    D(S) = 2 sum_{i in S} p_i / (|S| + sum_i p_i).

Its best S holds the pixels with p_i > D(S) / 2: the threshold is half of what the mask is worth
(Lipton, Elkan and Naryanaswamy 2014, "Optimal thresholding of classifiers to maximize F1 measure",
who show it for the equal F1), and so lies the lower the less sure the model is. The iteration of
Dinkelbach (1967, "On nonlinear fractional programming") finds it: from any S on, S <- {i: 2 p_i >
D(S)} raises D until it is the maximum.

Classes that exclude each other share the pixels of the sum of their D_k. To first order a pixel is
worth (2 p_ik - D_k) / (|S_k| + sum_i p_ik) to class k; it goes where it is worth most, and to the
background where that is not positive. This ends at a local maximum.

A class that no pixel is probable of stays empty: that something is there at all is not for the
Dice to say. Areas grow: whoever measures them should decide by what is probable.
"""

import functools
from collections.abc import Callable, Iterable

import numpy as np

from medsegdiff_jax import fusion
from medsegdiff_jax.types import Task

METHODS = ("probable", "dice")

DecideFn = Callable[[np.ndarray], np.ndarray]
"""Probability [..., K] -> mask [..., K] uint8 in {0, 1}."""

_PROGRESS = 1e-9  # of D; less is rounding


def rule(method: str, planes: Callable[[], Iterable[np.ndarray]], task: Task) -> DecideFn:
    """How to decide one case, a picture or a whole volume.

    Args:
      method: one of METHODS.
      planes: gives the probabilities of the case, in parts [..., K]; called twice.
      task: which channels exclude each other.

    Returns:
      "probable": `fusion.decide`. "dice": what promises the highest Dice; see above.
    """
    decide: DecideFn = functools.partial(fusion.decide, task=task)
    if method == "probable":
        return decide
    first = int(task.one_hot)
    common, marked, volume = np.zeros((3, len(task.classes)))
    for plane in planes():
        p, chosen = plane[..., first:], decide(plane)[..., first:].astype(bool)
        pixels = tuple(range(p.ndim - 1))
        common += np.sum(p, axis=pixels, dtype=np.float64, where=chosen)
        marked += np.sum(chosen, axis=pixels)
        volume += np.sum(p, axis=pixels, dtype=np.float64)
    promised, size = _promise(common, marked, volume)
    # What is worth less than half of any threshold so far is left out of the search.
    near = np.concatenate(
        [plane[(plane[..., first:] > promised / 4).any(-1)] for plane in planes()]
    )
    while True:
        better = functools.partial(_decide_by_worth, promised=promised, size=size, task=task)
        chosen = better(near)[..., first:]
        then, size = _promise((near[:, first:] * chosen).sum(0), chosen.sum(0), volume)
        if _total(then) <= _total(promised) + _PROGRESS:
            return decide
        decide, promised = better, then


def _promise(
    common: np.ndarray, marked: np.ndarray, volume: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums [K] over pixels, of p in the mask, of the mask, and of p -> D_k and its denominator.

    D_k of an empty mask is infinite.
    """
    empty = marked == 0
    size = np.where(empty, 1.0, marked + volume)
    return np.where(empty, np.inf, 2 * common / size), size


def _total(promised: np.ndarray) -> float:
    return float(promised[np.isfinite(promised)].sum())


def _decide_by_worth(
    probability: np.ndarray, *, promised: np.ndarray, size: np.ndarray, task: Task
) -> np.ndarray:
    worth = (2 * probability[..., int(task.one_hot) :] - promised) / size
    if not task.one_hot:
        return (worth > 0).astype(np.uint8)
    best = np.where(worth.max(-1) > 0, 1 + worth.argmax(-1), 0)
    return (best[..., None] == np.arange(probability.shape[-1])).astype(np.uint8)
