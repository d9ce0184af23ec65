"""Ensembles in batches: who is drawn when, and in which order they are handed out."""

import numpy as np
import pytest

from medsegdiff_jax.drawing import Ensemble, draw_all
from medsegdiff_jax.types import InputError

CHUNK = 5


class Needs:
    """Stands in for a `Stability` rule: stable at a given number of members."""

    def __init__(self, needed):
        self.needed, self.count = needed, 0

    def add(self, members):
        """As `Stability.add`."""
        self.count += len(members)
        return self.needed if self.needed and self.count >= self.needed else None


def ensemble(index, needed=None, most=20):
    """A case whose members are its own number and theirs."""
    rule = None if needed is None else Needs(needed)
    return Ensemble(str(index), np.zeros((1, 1, 1)), np.zeros((1, 1, 1)), rule, most)


class Device:
    """Draws CHUNK members of each ensemble of a group; keeps the groups and what was finished."""

    def __init__(self, chunk=CHUNK):
        self.groups, self.finished, self.chunk = [], [], chunk

    def __call__(self, group):
        """As a DrawFn."""
        self.groups.append([one.case_id for one in group])
        number, first = len(self.groups), [one.size for one in group]

        def finish():
            self.finished.append(number)
            for one, begin in zip(group, first, strict=True):
                members = [[int(one.case_id), begin + n] for n in range(self.chunk)]
                one.add(np.array(members, np.float32)[:, None, None])

        return finish


def test_cases_get_what_they_need_in_their_order_and_hardly_a_member_more():
    rng = np.random.default_rng(0)
    needs = rng.integers(1, 21, 60)
    device = Device()
    cases = (ensemble(index, int(needed)) for index, needed in enumerate(needs))
    found = list(draw_all(cases, device, batch=8))
    assert [one.case_id for one in found] == [str(index) for index in range(60)]
    assert [one.size for one in found] == needs.tolist()
    for index, one in enumerate(found):
        expected = np.stack([np.full(len(one.members), index), np.arange(len(one.members))], 1)
        np.testing.assert_array_equal(one.members[:, 0, 0], expected)
    wanted = sum(-(-needed // CHUNK) for needed in needs)
    places = 8 * len(device.groups)
    assert wanted <= places < 1.2 * wanted + 3 * 8  # the last ones find no company


def test_without_a_rule_batches_are_as_they_come():
    device = Device()
    found = list(draw_all((ensemble(index, most=CHUNK) for index in range(7)), device, batch=3))
    assert [one.size for one in found] == [CHUNK] * 7
    assert device.groups == [["0", "1", "2"], ["3", "4", "5"], ["6"]]


def test_an_ensemble_that_is_never_stable_ends_with_the_most():
    (one,) = draw_all([ensemble(0, needed=0, most=12)], Device(), batch=2)
    assert one.size == 12


def test_a_number_beyond_the_most_does_not_count():
    (one,) = draw_all([ensemble(0, needed=14, most=12)], Device(), batch=2)
    assert one.size == 12


def test_the_next_call_begins_before_the_last_is_waited_for():
    device = Device()
    results = draw_all((ensemble(index, most=CHUNK) for index in range(3)), device, batch=1)
    assert next(results).case_id == "0"
    assert len(device.groups) == 2 and device.finished == [1]


@pytest.mark.parametrize("needed", [None, 18])
def test_what_came_before_an_error_is_completed(needed):
    def cases():
        yield from (ensemble(index, needed, most=20) for index in range(3))
        raise InputError("the fourth cannot be read")

    results = draw_all(cases(), Device(), batch=2)
    assert [next(results).case_id for _ in range(3)] == ["0", "1", "2"]
    with pytest.raises(InputError, match="the fourth"):
        next(results)
