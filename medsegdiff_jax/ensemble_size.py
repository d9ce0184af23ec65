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

from collections.abc import Iterable

import numpy as np

from medsegdiff_jax import fusion, metrics
from medsegdiff_jax.types import InputError, Task

WINDOW = 10


class Stability:
    """The rule for one case whose members come one after the other."""

    def __init__(self, task: Task, method: str, *, tolerance: float = 0.001, window: int = WINDOW):
        """Starts without members.

        Args:
          task: says how channels are decided and which of them is background.
          method: of fusion, one of fusion.METHODS.
          tolerance: loss of Dice from one ensemble to the next that counts as no change, >= 0.
          window: members in a row that must change nothing, >= 1.

        Raises:
          InputError: unknown method, negative tolerance or window below 1.
        """
        if not tolerance >= 0 or window < 1:
            raise InputError(f"tolerance ({tolerance}) must be >= 0 and window ({window}) >= 1")
        self._task, self._tolerance, self._window = task, tolerance, window
        self._fusion = fusion.RunningFusion(task, method)
        self._before: np.ndarray | None = None
        self._count = self._calm = 0  # members; those in a row that changed nothing

    def add(self, members: Iterable[np.ndarray]) -> int | None:
        """Members' probabilities [H, W, K] -> number of members at which the case got stable.

        None while it is not stable; what comes after that number is not looked at.
        """
        for member in members:
            if self._calm == self._window:
                break
            fused = fusion.decide(self._fusion.add(member), self._task)
            after = fused[..., self._task.foreground]
            self._count += 1
            if self._before is not None:
                dice = np.nan_to_num(metrics.dice(after, self._before, axis=(0, 1)), nan=1.0)
                same = (dice >= 1 - self._tolerance).all()
                self._calm = self._calm + 1 if same else 0
            self._before = after
        return self._count if self._calm == self._window else None


def members_needed(
    members: np.ndarray, task: Task, method: str, *, tolerance: float = 0.001, window: int = WINDOW
) -> list[int | None]:
    """Smallest stable ensemble of every case; see above.

    Args:
      members: [n, B, H, W, K] probabilities in [0, 1], in the order of drawing.
      task, method, tolerance, window: as in `Stability`.

    Returns:
      B numbers in window + 1 .. n; None for a case that is not stable within n members.

    Raises:
      InputError: as `Stability`.
    """
    cases = np.asarray(members).swapaxes(0, 1)
    rules = (Stability(task, method, tolerance=tolerance, window=window) for _ in cases)
    return [rule.add(case) for rule, case in zip(rules, cases, strict=True)]
