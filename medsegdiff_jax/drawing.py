"""Ensembles of many cases drawn in batches of one shape, some with more members than others.

Every call of the compiled ensemble draws the next members of `batch` cases. A case whose ensemble
is complete leaves; what is not waits for a place in one of the next calls, before new cases get
one. So the devices draw hardly a member that is not wanted, whatever the cases have in common.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from medsegdiff_jax.ensemble_size import Stability
from medsegdiff_jax.progress import ahead
from medsegdiff_jax.types import InputError


@dataclasses.dataclass
class Ensemble:
    """A case on its way.

    Attributes:
      case_id: its name.
      image: [H, W, C] as given.
      network_image: [S, S, C] as the network takes it.
      rule: when to stop; None for `most` members.
      most: members at most.
      members: [n, S, S, K] drawn so far.
      condition_probability: [S, S, K] of the condition model alone, if it segments.
      seconds: its share of the time that its calls took.
      path: how the first sample came about, if that was asked for.
      complete: whether no more members are wanted.
    """

    case_id: str
    image: np.ndarray
    network_image: np.ndarray
    rule: Stability | None
    most: int
    members: np.ndarray | None = None
    condition_probability: np.ndarray | None = None
    seconds: float = 0.0
    path: np.ndarray | None = None
    complete: bool = False

    @property
    def size(self) -> int:
        """Members so far."""
        return 0 if self.members is None else len(self.members)

    def add(self, drawn: np.ndarray) -> None:
        """Takes as many of the next members [m, S, S, K] as are wanted."""
        before = [] if self.members is None else [self.members]
        self.members = np.concatenate([*before, drawn])[: self.most]
        stable = self.rule.add(drawn) if self.rule else None
        if stable is not None and stable <= self.most:
            self.members = self.members[:stable]
        self.complete = stable is not None or self.size == self.most


Group = list[Ensemble]
DrawFn = Callable[[Group], Callable[[], None]]
"""Starts a call for at most `batch` ensembles; what it returns waits and adds the members."""


def draw_all(ensembles: Iterable[Ensemble], draw: DrawFn, batch: int) -> Iterator[Ensemble]:
    """The ensembles, complete and in their order.

    While the devices work at one call, a thread gets the cases of the next, and the caller deals
    with what is complete.

    Args:
      ensembles: without members; read lazily.
      draw: see above.
      batch: ensembles per call.

    Raises:
      InputError: from `ensembles`, after all that came before it.
    """
    source = itertools.chain.from_iterable(ahead(_lists(ensembles, batch)))
    waiting: collections.deque[Ensemble] = collections.deque()
    in_order: collections.deque[Ensemble] = collections.deque()
    running: tuple[Group, Callable[[], None]] | None = None
    error: InputError | None = None
    while True:
        group = [waiting.popleft() for _ in range(min(batch, len(waiting)))]
        for item in itertools.islice(source, batch - len(group)):
            if isinstance(item, InputError):
                error = item
            else:
                group.append(item)
                in_order.append(item)
        started = (group, draw(group)) if group else None
        if running:
            running[1]()
            waiting.extend(one for one in running[0] if not one.complete)
            while in_order and in_order[0].complete:
                yield in_order.popleft()
        running = started
        if not running and not waiting:
            break
    if error:
        raise error


def _lists(items: Iterable[Ensemble], size: int) -> Iterator[list[Ensemble | InputError]]:
    iterator = _until_error(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _until_error(items: Iterable[Ensemble]) -> Iterator[Ensemble | InputError]:
    """The items; an InputError that is raised between them becomes the last item."""
    try:
        yield from items
    except InputError as error:
        yield error
