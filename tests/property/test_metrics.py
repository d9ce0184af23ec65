"""Identities of the metrics on arbitrary masks."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medsegdiff_jax import metrics
from medsegdiff_jax.types import InputError

masks = hnp.arrays(np.bool_, (7, 9))
stacks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 5), st.just(3), st.just(4)))
sizes = st.floats(0.1, 10)
examples = settings(max_examples=60)


@examples
@given(masks, masks)
def test_dice_is_symmetric_and_2j_over_1_plus_j(a, b):
    assume(a.any() or b.any())
    dice, iou = metrics.dice(a, b), metrics.iou(a, b)
    assert dice == pytest.approx(2 * iou / (1 + iou), abs=1e-12)
    assert dice == metrics.dice(b, a) and iou == metrics.iou(b, a)
    assert 0 <= iou <= dice <= 1


@examples
@given(masks)
def test_a_mask_against_itself(a):
    assume(a.any())
    assert metrics.dice(a, a) == metrics.iou(a, a) == 1.0
    assert metrics.hd95(a, a, (1, 1)) == 0.0


def test_axis_counts_per_class():
    prediction = np.zeros((4, 4, 3), np.uint8)
    reference = prediction.copy()
    prediction[0, :2, 0] = 1
    reference[0, 1:4, 0] = 1
    reference[0, 0, 1] = 1
    # Class 0: |A|=2, |B|=3, common 1: Dice 2/5, IoU 1/4. Class 1: missed. Class 2: both empty.
    np.testing.assert_allclose(metrics.dice(prediction, reference, axis=(0, 1)), [0.4, 0.0, np.nan])
    np.testing.assert_allclose(metrics.iou(prediction, reference, axis=(0, 1)), [0.25, 0.0, np.nan])


@examples
@given(masks, st.integers(-6, 6), st.integers(-6, 6), sizes, sizes)
def test_hd95_of_one_shifted_pixel_pattern_is_at_most_the_shift(a, dy, dx, sy, sx):
    assume(a.any())
    canvas = np.zeros((30, 30), bool)
    canvas[10:17, 10:19] = a
    shifted = np.roll(canvas, (dy, dx), (0, 1))
    shift = np.hypot(dy * sy, dx * sx)
    # Every pixel has a partner at that distance; a nearer one may exist.
    assert metrics.hd95(canvas, shifted, (sy, sx)) <= shift * (1 + 1e-12)


@pytest.mark.parametrize("spacing", [(1, 1), (0.5, 2.0), (3.0, 0.7)])
@pytest.mark.parametrize("axis", [0, 1])
def test_hd95_of_a_translated_line_is_shift_times_spacing(axis, spacing):
    # A line moved across itself: every distance is the shift.
    line = np.zeros((40, 50), bool)
    line[(slice(20, 21), slice(None)) if axis == 0 else (slice(None), slice(20, 21))] = True
    moved = np.roll(line, 6, axis)
    assert metrics.hd95(line, moved, spacing) == pytest.approx(6 * spacing[axis], rel=1e-12)


@examples
@given(masks, masks, sizes)
def test_hd95_scales_with_spacing_is_symmetric_and_ignores_surroundings(a, b, factor):
    assume(a.any() and b.any())
    base = metrics.hd95(a, b, (1.0, 1.5))
    assert metrics.hd95(b, a, (1.0, 1.5)) == base
    assert metrics.hd95(a, b, (factor, 1.5 * factor)) == pytest.approx(factor * base, rel=1e-9)
    inside, outside = (np.pad(mask, ((3, 8), (5, 2))) for mask in (a, b))
    assert metrics.hd95(inside, outside, (1.0, 1.5)) == base


@examples
@given(masks, masks)
def test_distances_equal_a_brute_force_search(a, b):
    assume(a.any() and b.any())

    def surface(mask):
        padded = np.pad(mask, 1)
        interior = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        return np.argwhere(mask & ~interior) * (2.0, 0.5)

    distance = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=-1)
    got = metrics.surface_distances(a, b, (2.0, 0.5))
    np.testing.assert_allclose(np.sort(got.to_reference), np.sort(distance.min(1)), atol=1e-12)
    np.testing.assert_allclose(np.sort(got.to_prediction), np.sort(distance.min(0)), atol=1e-12)


@examples
@given(stacks, stacks)
def test_energy_distance_is_a_distance_between_sets(samples, references):
    ged = metrics.generalized_energy_distance(samples, references)
    assert -1e-12 <= ged <= 2
    assert ged == pytest.approx(metrics.generalized_energy_distance(references, samples), abs=1e-12)
    same = metrics.generalized_energy_distance(samples, samples[::-1])
    assert same == pytest.approx(0, abs=1e-12)


def test_energy_distance_by_hand():
    left, both = np.array([1, 0], bool), np.array([1, 1], bool)
    # d(left, both) = 1/2. One sample, raters {left, both}: 2 * 1/4 - 0 - (2 * 1/2) / 4 = 1/4.
    got = metrics.generalized_energy_distance(left[None], np.stack([left, both]))
    assert got == pytest.approx(0.25, abs=1e-15)


@pytest.mark.parametrize("score", [metrics.dice, metrics.iou])
def test_refuses_probabilities_labels_and_other_shapes(score):
    mask = np.ones((3, 3))
    with pytest.raises(InputError, match="^prediction: a mask must hold only 0 and 1"):
        score(mask * 0.7, mask)
    with pytest.raises(InputError, match="^reference: a mask must hold only 0 and 1"):
        score(mask, mask * 255)
    with pytest.raises(InputError, match="^prediction: shape"):
        score(mask, mask[:2])


@pytest.mark.parametrize("spacing", [(1,), (1, 1, 1), (0, 1), (-1, 1), (float("nan"), 1)])
def test_refuses_a_bad_spacing(spacing):
    with pytest.raises(InputError, match="^spacing: "):
        metrics.hd95(np.ones((3, 3)), np.ones((3, 3)), spacing)


@pytest.mark.parametrize("shift", [2, 5])
@pytest.mark.parametrize("size", [1.0, 0.4, 0.1, 1.1])
def test_a_distance_that_is_the_limit_but_for_rounding_is_within(size, shift):
    reference = np.zeros((24, 24, 24), bool)
    reference[8:12, 8:12, 8:12] = True
    prediction = np.roll(reference, shift, 0)
    exact = metrics.surface_distances(prediction, reference, (1.0,) * 3)
    band = metrics.border_band(reference, (1.0,) * 3, 5.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        spacing = size * (1 + rng.uniform(-1e-7, 1e-7, 3))  # as float32 keeps an affine
        found = metrics.surface_distances(prediction, reference, spacing)
        assert found.nsd(shift * size) == exact.nsd(shift)
        assert found.nsd(shift * size * 0.999) == exact.nsd(shift * 0.999) < 1
        wide = metrics.border_band(reference, spacing, 5 * min(spacing))
        np.testing.assert_array_equal(wide, band)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0, 1), (1, np.nan)])
def test_a_band_needs_a_spacing_per_axis(spacing):
    with pytest.raises(InputError, match="is not one positive number for each of 2 axes"):
        metrics.border_band(np.ones((4, 4)), spacing, 5)
