"""Fresh raters written like predictions: exact at their own size, coarser through a small one."""

import numpy as np

from benchmarks import fresh_raters
from data.phantom import model
from medsegdiff_jax import atomic, scored_files

CASE = "binary_test_003"


def written(folder, side):
    """The files of the case: names, members as bool, probability."""
    names = fresh_raters.write_case(folder, CASE, 3, side)
    run = {"task": fresh_raters.TASK.to_json(), "cases": {CASE: {"files": names}}}
    atomic.write_json(folder / "run.json", run)
    case = scored_files.read_predictions([folder]).cases[CASE]
    shape = (model.NATIVE_SIZE, model.NATIVE_SIZE)
    members = scored_files.read_members(case, fresh_raters.TASK, shape)
    chance = scored_files.read_probability(case, fresh_raters.TASK, 0, shape)
    return names, np.array(members) > 0, chance


def test_at_their_own_size_they_are_the_raters_and_their_distribution(tmp_path):
    names, members, chance = written(tmp_path, model.NATIVE_SIZE)
    drawn = model.fresh_raters(CASE, 3, fresh_raters.SEED) > 0
    np.testing.assert_array_equal(members, drawn)
    np.testing.assert_allclose(chance, model.rater_probability(CASE)[0], atol=0.5 / 255 + 1e-6)
    assert names["mask"] == [f"{CASE}.png"] and len(names["members"]) == 3


def test_through_a_small_size_they_lose_detail_but_no_area(tmp_path):
    _, coarse, chance = written(tmp_path, 32)
    drawn = model.fresh_raters(CASE, 3, fresh_raters.SEED) > 0
    lost = (coarse != drawn).sum(axis=(1, 2)) / drawn.sum(axis=(1, 2))
    assert (lost > 0.01).all() and (lost < 0.15).all()
    np.testing.assert_allclose(coarse.sum(axis=(1, 2)), drawn.sum(axis=(1, 2)), rtol=0.03)
    exact = model.rater_probability(CASE)[0]
    np.testing.assert_allclose(chance.sum(), exact.sum(), rtol=0.03)
    assert 0.01 < np.abs(chance - exact).max() < 0.6 and np.abs(chance - exact).mean() < 0.02
