"""Dice, IoU, HD95, HD, ASSD, NSD and GED against MONAI, medpy and a plain loop (data/README.md)."""

import pathlib

import numpy as np
import pytest

from medsegdiff_jax import metrics

DATA = pathlib.Path(__file__).parent / "data"
MASKS = dict(np.load(DATA / "masks_monai_medpy.npz"))
GED = dict(np.load(DATA / "ged.npz"))
PAIRS = [pytest.param(i, id=str(name)) for i, name in enumerate(MASKS["names"])]


def pair(i):
    return tuple(MASKS[f"pair/{i:03d}/{part}"] for part in ("pred", "gt", "spacing"))


@pytest.mark.parametrize("i", PAIRS)
def test_dice_and_iou(i):
    prediction, reference, _ = pair(i)
    both_empty = not prediction.any() and not reference.any()
    if both_empty:
        assert np.isnan(metrics.dice(prediction, reference))
        assert np.isnan(metrics.iou(prediction, reference))
    else:  # integer counts and one division: equal to the last bit
        assert metrics.dice(prediction, reference) == MASKS["dice/medpy"][i]
        assert metrics.iou(prediction, reference) == MASKS["iou/medpy"][i]
    if reference.any():  # MONAI is NaN with an empty reference, and float32
        assert metrics.dice(prediction, reference) == pytest.approx(
            MASKS["dice/monai"][i], abs=1e-7
        )
        assert metrics.iou(prediction, reference) == pytest.approx(MASKS["iou/monai"][i], abs=1e-7)


@pytest.mark.parametrize("i", PAIRS)
def test_surface_distances(i):
    prediction, reference, spacing = pair(i)
    distances = metrics.surface_distances(prediction, reference, spacing)
    if not prediction.any() or not reference.any():
        assert np.isnan([distances.hd, distances.hd95, distances.assd, distances.nsd(1)]).all()
        return
    # MONAI's float32 interpolation is off by up to 7.1e-6 on these.
    assert distances.hd95 == pytest.approx(MASKS["hd95/monai"][i], abs=1e-5)
    assert metrics.hd95(prediction, reference, spacing) == distances.hd95
    assert distances.hd == pytest.approx(MASKS["hd/medpy"][i], abs=1e-12)
    assert distances.assd == pytest.approx(MASKS["asd/medpy_assd"][i], abs=1e-12)
    tolerance = 1.5 * spacing.min()
    assert distances.nsd(tolerance) == pytest.approx(MASKS["nsd/monai"][i], abs=1e-6)


@pytest.mark.parametrize("i", PAIRS)
def test_sensitivity_and_precision(i):
    prediction, reference, _ = pair(i)
    found = metrics.sensitivity(prediction, reference), metrics.precision(prediction, reference)
    if not prediction.any() or not reference.any():
        expected = [0.0 if mask.any() else np.nan for mask in (reference, prediction)]
        np.testing.assert_array_equal(found, expected)
    elif all(found):  # Dice is their harmonic mean
        assert 2 / (1 / found[0] + 1 / found[1]) == pytest.approx(MASKS["dice/medpy"][i], abs=1e-12)
    else:
        assert MASKS["dice/medpy"][i] == 0


def test_hd95_is_not_the_pooled_percentile():
    # Two pixels at the ends of a 50-pixel row (0 and 45 from the reference): directed 95th
    # percentiles 42.75 and 0, pooled one 40.5.
    prediction = np.zeros((1, 50), bool)
    reference = prediction.copy()
    prediction[0, [0, 45]] = True
    reference[0, 0] = True
    assert metrics.hd95(prediction, reference, (1, 1)) == pytest.approx(42.75)


@pytest.mark.parametrize(
    "i", [pytest.param(i, id=str(name)) for i, name in enumerate(GED["ged_names"])]
)
def test_generalized_energy_distance(i):
    samples, raters = GED[f"ged/{i:03d}/samples"], GED[f"ged/{i:03d}/raters"]
    got = metrics.generalized_energy_distance(samples, raters)
    assert got == pytest.approx(GED["ged/v_iou"][i], abs=1e-12)


@pytest.mark.parametrize(
    "i", [pytest.param(i, id=str(name)) for i, name in enumerate(GED["ged_names"])]
)
def test_matched_iou_and_maximum_dice(i):
    samples, raters = GED[f"ged/{i:03d}/samples"], GED[f"ged/{i:03d}/raters"]
    overlaps = metrics.set_overlaps(samples, raters)
    assert overlaps.matched_iou == pytest.approx(GED["ged/hm_iou"][i], abs=1e-12)
    assert overlaps.max_dice == pytest.approx(GED["ged/dmax"][i], abs=1e-12)
