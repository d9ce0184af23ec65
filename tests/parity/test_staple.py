"""STAPLE against SimpleITK (data/README.md)."""

import pathlib

import numpy as np
import pytest

from medsegdiff_jax import fusion

STAPLE = dict(np.load(pathlib.Path(__file__).parent / "data" / "staple_simpleitk.npz"))
SETS = [pytest.param(i, id=str(name)) for i, name in enumerate(STAPLE["staple_names"])]


@pytest.mark.parametrize("i", SETS)
def test_equals_simpleitk(i):
    raters, probability, sensitivity, specificity, iterations = (
        STAPLE[f"staple/{i:03d}/{part}"] for part in ("raters", "prob", "sens", "spec", "iters")
    )
    got = fusion.staple(raters)
    if raters.all() or not raters.any():
        assert np.isnan(probability).all()  # ITK divides 0 by 0; ours is the raters' one opinion
        np.testing.assert_array_equal(got.probability, raters[0])
        np.testing.assert_array_equal([got.sensitivity, got.specificity], 1.0)
        return
    # Both float64; products there, sums of logarithms and another order of summation here.
    np.testing.assert_allclose(got.probability, probability, rtol=0, atol=1e-11)
    np.testing.assert_allclose(got.sensitivity, sensitivity, rtol=0, atol=1e-11)
    np.testing.assert_allclose(got.specificity, specificity, rtol=0, atol=1e-11)
    if got.iterations:  # not for unanimous raters; ITK counts from 0
        assert got.iterations == iterations + 1
