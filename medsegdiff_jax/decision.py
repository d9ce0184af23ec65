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
worth (2 p_ik - D_k) / (|S_k| + sum_i p_ik) to class k, and 0 to the background. All pixels move to
where they are worth most; if the sum falls by that, only the half that gains most, or a quarter,
and so on. This ends where no such move helps.

A class that no pixel is probable of stays empty, and one that has a probable pixel keeps some: that
something is there at all is not for the Dice to say. Regions that may overlap are decided each by
itself, so that a doubtful inner one may stick out of its outer one by a few pixels. Areas grow:
whoever measures them should decide by what is probable.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from medsegdiff_jax import fusion
from medsegdiff_jax.types import Task, check_one_of

METHODS = ("probable", "dice")

DecideFn = Callable[[np.ndarray], np.ndarray]
"""Probability [..., K] -> mask [..., K] uint8 in {0, 1}."""

_PROGRESS = 1e-6  # of the sum of D; a move that brings less is not made


def check_method(method: str) -> None:
    """Raises InputError unless it is one of METHODS."""
    check_one_of("decision", method, METHODS)


def rule(method: str, planes: Callable[[], Iterable[np.ndarray]], task: Task) -> DecideFn:
    """How to decide one case, a picture or a whole volume.

    Args:
      method: one of METHODS.
      planes: gives the probabilities of the case, in parts [..., K]; called twice.
      task: which channels exclude each other.

    Returns:
      "probable": `fusion.decide`. "dice": what promises the highest Dice; see above.
    """
    if method == "probable":
        return functools.partial(fusion.decide, task=task)
    # The search looks only at pixels that some threshold could still mark, and returns the moves
    # that it made, not a mask: they are made again on one plane of a volume at a time.
    common, marked, volume = _sums(planes(), task)
    expected, denominator = _expected_dice(common, marked, volume)
    candidates = np.concatenate([_candidates(plane, expected, task) for plane in planes()])
    moves = _search(candidates, expected, denominator, volume, task)
    return functools.partial(_decide, moves=moves, task=task)


def _sums(planes: Iterable[np.ndarray], task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each class over all pixels: p where it is probable, how many that are, and p."""
    common, marked, volume = np.zeros((3, len(task.classes)))
    for plane in planes:
        p = plane[..., task.foreground]
        chosen = fusion.decide(plane, task)[..., task.foreground].astype(bool)
        pixels = tuple(range(p.ndim - 1))
        common += np.sum(p, axis=pixels, dtype=np.float64, where=chosen)
        marked += np.sum(chosen, axis=pixels)
        volume += np.sum(p, axis=pixels, dtype=np.float64)
    return common, marked, volume


def _candidates(plane: np.ndarray, expected: np.ndarray, task: Task) -> np.ndarray:
    """Pixels [n, K] that are marked or worth at least half of any threshold so far."""
    high = plane[..., task.foreground] > expected / 4
    chosen = fusion.decide(plane, task)[..., task.foreground] > 0
    return plane[(high | chosen).any(-1)]


class _Move(NamedTuple):
    """Pixels go where they are worth most if they gain more than `margin` (0: all go)."""

    expected: np.ndarray
    denominator: np.ndarray
    margin: float


def _search(
    candidates: np.ndarray,
    expected: np.ndarray,
    denominator: np.ndarray,
    volume: np.ndarray,
    task: Task,
) -> tuple[_Move, ...]:
    """Moves that each raise the sum of the D_k, from what is probable on, until none does."""
    mask = fusion.decide(candidates, task)
    moves: list[_Move] = []

    def first_better() -> tuple[_Move, np.ndarray, np.ndarray, np.ndarray] | None:
        """A move, the mask after it, and the D_k and denominators of that."""
        for move in _moves(candidates, mask, expected, denominator, task):
            moved = _apply(move, candidates, mask, task)
            chosen = moved[..., task.foreground].astype(bool)
            common = np.sum(candidates[:, task.foreground], axis=0, dtype=np.float64, where=chosen)
            then, denominator_then = _expected_dice(common, chosen.sum(0), volume)
            if _is_better(then, expected):
                return move, moved, then, denominator_then
        return None

    while better := first_better():
        move, mask, expected, denominator = better
        if move.margin == 0:
            moves.clear()  # it moves every pixel to its best place, wherever it was
        moves.append(move)
    return tuple(moves)


def _decide(probability: np.ndarray, *, moves: tuple[_Move, ...], task: Task) -> np.ndarray:
    """What is probable, then one move after the other."""
    mask = fusion.decide(probability, task)
    for move in moves:
        mask = _apply(move, probability, mask, task)
    return mask


def _expected_dice(
    common: np.ndarray, marked: np.ndarray, volume: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sums [K] over pixels, of p in the mask, of the mask, and of p -> D_k and its denominator.

    D_k of an empty mask is infinite.
    """
    empty = marked == 0
    denominator = np.where(empty, 1.0, marked + volume)
    return np.where(empty, np.inf, 2 * common / denominator), denominator


def _is_better(then: np.ndarray, now: np.ndarray) -> bool:
    filled = np.isfinite(now)
    if (np.isfinite(then) != filled).any():
        return False
    return float(np.sum(then[filled] - now[filled])) > _PROGRESS


def _moves(
    probability: np.ndarray,
    mask: np.ndarray,
    expected: np.ndarray,
    denominator: np.ndarray,
    task: Task,
) -> Iterator[_Move]:
    """Of all pixels, and of fewer and fewer of those that gain most."""
    yield _Move(expected, denominator, 0.0)
    if not task.one_hot:
        return  # it has raised D, or D is the maximum
    _, gain = _best(probability, mask, expected, denominator)
    gain = np.sort(gain[gain > 0])[::-1]
    count = len(gain) // 2
    while count:
        yield _Move(expected, denominator, float(gain[count]))
        count //= 2


def _apply(move: _Move, probability: np.ndarray, mask: np.ndarray, task: Task) -> np.ndarray:
    if not task.one_hot:
        return (2 * probability > move.expected).astype(np.uint8)
    best, gain = _best(probability, mask, move.expected, move.denominator)
    moved = (best[..., None] == np.arange(mask.shape[-1])).astype(np.uint8)
    return moved if move.margin == 0 else np.where((gain > move.margin)[..., None], moved, mask)


def _best(
    probability: np.ndarray, mask: np.ndarray, expected: np.ndarray, denominator: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel is worth most, background first, and by how much more than where it is."""
    worth = (2 * probability[..., 1:] - expected) / denominator
    worth = np.concatenate([np.zeros_like(worth[..., :1]), worth], axis=-1)
    here = np.take_along_axis(worth, mask.argmax(-1)[..., None], axis=-1)[..., 0]
    return worth.argmax(-1), worth.max(-1) - here
