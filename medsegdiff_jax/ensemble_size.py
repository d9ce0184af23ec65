"""How many members an ensemble needs: as many as it takes until more of them change nothing.

Wu et al. 2024 (MedSegDiff-V2, table 5) count the cost of a method up to the first stable ensemble:
the performance of the last 10 varies by less than 0.1%. How that is measured is left open. Our rule
needs no reference, so it can be asked of any image: let F_n be the decided mask of the first n
members, fused. Adding member n changes nothing if

    Dice_k(F_n, F_{n-1}) >= 1 - tolerance    for every foreground channel k,

where two empty masks are equal (Dice 1) and an empty one has nothing in common with any other
(Dice 0). The ensemble needs the smallest n for which the members n - window + 1, ..., n all changed
nothing: never fewer than window + 1, since the first member has no ensemble before it.
"""

import numpy as np

from medsegdiff_jax import fusion, metrics
from medsegdiff_jax.types import InputError, Task


def members_needed(
    members: np.ndarray, task: Task, method: str, *, tolerance: float = 0.001, window: int = 10
) -> list[int | None]:
    """Smallest stable ensemble of every case; see above.

    Args:
      members: [n, B, H, W, K] probabilities in [0, 1], in the order of drawing.
      task: says how channels are decided and which of them is background.
      method: of fusion, one of fusion.METHODS.
      tolerance: loss of Dice from one ensemble to the next that counts as no change, >= 0.
      window: members in a row that must change nothing, >= 1.

    Returns:
      B numbers in window + 1 .. n; None for a case that is not stable within n members.

    Raises:
      InputError: unknown method, negative tolerance or window below 1.
    """
    if tolerance < 0 or window < 1:
        raise InputError(f"tolerance ({tolerance}) must be >= 0 and window ({window}) >= 1")
    members = np.asarray(members)
    needed: list[int | None] = [None] * members.shape[1]
    calm = np.zeros(members.shape[1], np.int64)  # members in a row that changed nothing
    before = _foreground(members[:1], task, method)
    for n in range(2, len(members) + 1):
        after = _foreground(members[:n], task, method)
        dice = np.nan_to_num(metrics.dice(after, before, axis=(1, 2)), nan=1.0)
        calm = np.where((dice >= 1 - tolerance).all(-1), calm + 1, 0)
        for case in np.flatnonzero(calm == window):
            needed[case] = needed[case] or n
        if None not in needed:
            break
        before = after
    return needed


def _foreground(members: np.ndarray, task: Task, method: str) -> np.ndarray:
    """[n, B, H, W, K] -> decided masks of the foreground channels of the fused ensemble."""
    fused = fusion.decide(fusion.fuse(members, task, method), task)
    return fused[..., int(task.one_hot) :]
