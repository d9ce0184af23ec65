"""When an ensemble is large enough: closed forms of the definition in `ensemble_size`."""

import numpy as np
import pytest

from medsegdiff_jax import fusion
from medsegdiff_jax.ensemble_size import members_needed
from medsegdiff_jax.types import InputError, Task

BINARY = Task(("lesion",), (1,), True, 3)
EXCLUSIVE = Task(("a", "b"), (1, 2), True, 1)
REGIONS = Task(("disc", "cup"), (1, 2), False, 3)


def rows(*filled, width=1000):
    """Members of one case, [n, 1, 1, width, 1]: pixels start..stop-1 of each are foreground."""
    members = np.zeros((len(filled), 1, 1, width, 1), np.float32)
    for member, (start, stop) in zip(members, filled, strict=True):
        member[..., start:stop, :] = 1
    return members


A, B, NOTHING = (0, 300), (500, 800), (0, 0)


@pytest.mark.parametrize("method", fusion.METHODS)
@pytest.mark.parametrize("mask", [A, NOTHING, (0, 1000)])
def test_identical_members_need_one_more_than_the_window(mask, method):
    assert members_needed(rows(*[mask] * 11), BINARY, method) == [11]
    assert members_needed(rows(*[mask] * 30), BINARY, method) == [11]
    assert members_needed(rows(*[mask] * 10), BINARY, method) == [None]
    assert members_needed(rows(*[mask] * 5), BINARY, method, window=3) == [4]


def test_alternating_members_are_never_stable():
    # An even number of them is a tie, which is foreground: A, A and B, A, A and B, ...
    assert members_needed(rows(*[A, B] * 20), BINARY, "mean", window=1) == [None]
    # Two against one, however, is A as soon as it is two against one: A, A, A, ...
    assert members_needed(rows(*[A, A, B] * 5), BINARY, "mean", window=4) == [5]


def test_the_window_starts_again_after_a_change():
    # Three times A, then B: A for 1..5 members, both at the tie of 6, B from 7 on.
    members = rows(*[A] * 3, *[B] * 20)
    assert members_needed(members, BINARY, "vote", window=4) == [5]
    assert members_needed(members, BINARY, "vote", window=5) == [7 + 5]
    assert members_needed(members, BINARY, "vote", window=16) == [7 + 16]
    assert members_needed(members, BINARY, "vote", window=17) == [None]


def test_from_empty_to_something_is_a_change():
    # Nothing for 1..3 members, A from the tie of 4 on.
    members = rows(*[NOTHING] * 2, *[A] * 10)
    assert members_needed(members, BINARY, "mean", window=1) == [2]
    assert members_needed(members, BINARY, "mean", window=2) == [3]
    assert members_needed(members, BINARY, "mean", window=3) == [4 + 3]


# One pixel more than 600 lowers Dice to 1200 / 1201 = 1 - 0.0008, two to 1 - 0.0017. They are there
# with an even number of members, which is a tie, and gone with an odd one.
@pytest.mark.parametrize(("more", "found"), [(0, [4]), (1, [4]), (2, [None])])
def test_a_change_below_the_tolerance_is_none(more, found):
    members = rows((0, 600), (0, 600 + more), (0, 600), (0, 600 + more))
    assert members_needed(members, BINARY, "mean", window=3) == found
    assert members_needed(members, BINARY, "mean", window=3, tolerance=0.01) == [4]
    assert (members_needed(members, BINARY, "mean", window=3, tolerance=0) == [4]) == (more == 0)


def test_every_case_has_its_own_answer():
    members = np.concatenate([rows(*[A] * 12), rows(*[A, B] * 6), rows(*[B] * 3, *[A] * 9)], axis=1)
    assert members_needed(members, BINARY, "mean", window=5) == [6, None, 12]
    # The last is stable twice, before and after its change: the first time counts.
    assert members_needed(members, BINARY, "mean", window=4) == [5, None, 5]


def test_every_foreground_channel_counts_and_background_does_not():
    steady, restless = rows(*[(0, 400)] * 8), rows(*[(900, 901), (902, 903)] * 4)
    regions = np.concatenate([steady, restless], axis=-1)
    assert members_needed(regions, REGIONS, "mean", window=3) == [None]
    assert members_needed(regions[..., [0, 0]], REGIONS, "mean", window=3) == [4]

    # One-hot, ties are background: the class gains its 999th pixel with the third member, which
    # takes one of the two that were background.
    first = rows((0, 998), *[(0, 999)] * 8)
    one_hot = np.concatenate([1 - first, first, np.zeros_like(first)], axis=-1)
    assert members_needed(one_hot, EXCLUSIVE, "mean", window=3) == [4]
    assert members_needed(one_hot, EXCLUSIVE, "mean", window=3, tolerance=0) == [3 + 3]


@pytest.mark.parametrize("wrong", [{"window": 0}, {"tolerance": -0.1}])
def test_refuses_what_has_no_meaning(wrong):
    with pytest.raises(InputError, match="tolerance"):
        members_needed(rows(A, A), BINARY, "mean", **wrong)
