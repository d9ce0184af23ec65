"""Ensembles of pairs and of independent members, from the same members."""

import numpy as np
import pytest

from benchmarks import opposite_pairs
from medsegdiff_jax import atomic, imaging
from medsegdiff_jax.types import InputError, Task

TASK = Task(("lesion",), (255,), True, 1)


def test_each_ensemble_is_half_of_the_members():
    found = opposite_pairs.ensembles(list(range(8)))
    assert found == {"pairs": [0, 1, 2, 3], "even": [0, 2, 4, 6], "odd": [1, 3, 5, 7]}
    for count in (0, 2, 6):
        with pytest.raises(InputError, match=f"{count} members"):
            opposite_pairs.ensembles(list(range(count)))


def test_pairs_that_err_in_opposite_ways_make_the_better_vote(tmp_path):
    columns = np.arange(16) * np.ones((16, 1))
    masks = tmp_path / "masks"
    masks.mkdir()
    imaging.write_png(masks / "a.png", np.where(columns < 8, 255, 0).astype(np.uint8))
    names = [f"a_{n}.png" for n in range(8)]
    # Even members are two columns too large, odd ones two too small; pairs vote for the truth
    # and, at the tie, for the larger one.
    for name, width in zip(names, [10, 6, 10, 6, 10, 6, 10, 6], strict=True):
        imaging.write_png(tmp_path / name, np.where(columns < width, 255, 0).astype(np.uint8))
    files = {"mask": ["a_0.png"], "members": names}
    run = {"task": TASK.to_json(), "cases": {"a": {"files": files}}}
    atomic.write_json(tmp_path / "run.json", run)
    found = opposite_pairs.measure(tmp_path, tmp_path)
    assert found["dice"]["odd"] == pytest.approx([2 * 6 / 14])
    assert found["dice"]["even"] == found["dice"]["pairs"] == pytest.approx([2 * 8 / 18])
    # Energy distance: 2 E d(S, R) - E d(S, S'), with IoU 8/10 and 6/8 to the truth, 6/10 apart.
    assert found["ged"]["even"] == pytest.approx([2 * 0.2])
    assert found["ged"]["odd"] == pytest.approx([2 * 0.25])
    assert found["ged"]["pairs"] == pytest.approx([2 * 0.225 - 0.5 * 0.4])
    run["cases"]["b"] = {"files": files}
    atomic.write_json(tmp_path / "run.json", run)
    with pytest.raises(InputError, match="no mask of b, which has a prediction"):
        opposite_pairs.measure(tmp_path, tmp_path)
