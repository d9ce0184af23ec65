"""Label maps of any task fit their type, and small types do not stumble over large labels."""

import numpy as np
import pytest

from medsegdiff_jax import imaging
from medsegdiff_jax.types import Task


@pytest.mark.parametrize(
    ("values", "exclusive", "dtype"),
    [
        ((300,), True, np.uint16),
        (range(1, 26), True, np.uint8),  # exclusive classes are never summed
        ([1 << bit for bit in range(8)], False, np.uint8),
        ([1 << bit for bit in range(9)], False, np.uint16),
    ],
)
def test_labels_have_the_smallest_type_that_holds_them_all(values, exclusive, dtype):
    task = Task(tuple(f"c{value}" for value in values), tuple(values), exclusive, 1)
    all_or_last = np.full((1, 1, task.mask_channels), not exclusive, np.uint8)
    all_or_last[..., -1] = 1
    labels = imaging.mask_to_labels(all_or_last, task)
    assert labels.dtype == task.label_dtype == dtype
    assert labels[0, 0] == (max(values) if exclusive else sum(values))


def test_small_types_hold_no_large_labels():
    regions = Task(tuple("abcdefghi"), tuple(1 << bit for bit in range(9)), False, 1)
    mask = imaging.labels_to_mask(np.array([[0, 1, 255]], np.uint8), regions)
    assert mask[0].sum(-1).tolist() == [0, 1, 8]
    far = Task(("far",), (300,), True, 1)
    assert not imaging.labels_to_mask(np.array([[0]], np.uint8), far).any()
