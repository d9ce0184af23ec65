"""The mask of the highest expected Dice: against all masks there are, and against drawn truths."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from medsegdiff_jax import decision, fusion, metrics
from medsegdiff_jax.types import Task

BINARY = Task(("lesion",), (1,), exclusive=True, image_channels=3)
REGIONS = Task(("whole", "core"), (1, 2), exclusive=False, image_channels=3)
ORGANS = Task(("liver", "spleen"), (1, 2), exclusive=True, image_channels=1)

chances = st.floats(0, 1, width=32)


def decide(method, probability, task):
    return decision.rule(method, lambda: [probability], task)(probability)


def expected_dice(mask, probability):
    """The ratio of expectations, of masks [..., pixels]."""
    total = mask.sum(-1) + probability.sum(-1)
    return np.divide(
        2 * (mask * probability).sum(-1), total, out=np.zeros(total.shape), where=total > 0
    )


@given(hnp.arrays(np.float32, (2, 4, 1), elements=chances))
def test_no_other_mask_promises_more(probability):
    ours = decide("dice", probability, BINARY)
    flat = probability.ravel().astype(np.float64)
    every = np.array(list(itertools.product((0, 1), repeat=8)))
    best = expected_dice(every, flat).max()
    if (probability >= 0.5).any():
        assert expected_dice(ours.ravel(), flat) == pytest.approx(best, abs=1e-6)
    else:
        assert not ours.any()


@given(hnp.arrays(np.float32, (3, 5, 2), elements=chances))
def test_regions_do_not_know_each_other(probability):
    both = decide("dice", probability, REGIONS)
    for k in range(2):
        assert (both[..., k : k + 1] == decide("dice", probability[..., k : k + 1], BINARY)).all()


@given(hnp.arrays(np.float32, (3, 5, 3), elements=st.floats(1 / 64, 1, width=32)))
def test_classes_share_the_pixels_and_promise_no_less(probability):
    probability = probability / probability.sum(-1, keepdims=True)
    ours, probable = (decide(method, probability, ORGANS) for method in decision.METHODS[::-1])
    assert (ours.sum(-1) == 1).all()

    def promised(mask):
        flat = (array[..., 1:].reshape(-1, 2).T.astype(np.float64) for array in (mask, probability))
        return expected_dice(*flat).sum()

    assert promised(ours) >= promised(probable) - 1e-6
    assert not (ours.any((0, 1)) & ~probable.any((0, 1)))[1:].any()


@pytest.mark.parametrize("seed", range(8))
def test_classes_end_where_no_pixel_should_go_elsewhere(seed):
    # Four doubtful organs: a step to where all pixels are worth most goes too far.
    rng, task = np.random.default_rng(seed), Task(tuple("abcd"), (1, 2, 3, 4), True, 1)
    height = np.stack([gaussian_filter(rng.normal(size=(16, 16)), 3) for _ in range(5)], axis=-1)
    probability = softmax(rng.uniform(5, 25, 5) * height, axis=-1)
    ours, probable = (decide(method, probability, task) for method in decision.METHODS[::-1])

    def promised(mask):
        flat = (array[..., 1:].reshape(-1, 4).T for array in (mask, probability))
        return expected_dice(*flat).sum()

    assert promised(ours) > promised(probable) + 0.01
    assert (ours.any((0, 1)) == probable.any((0, 1)))[1:].all()
    for index in np.ndindex(16, 16):
        for label in np.flatnonzero(ours.any((0, 1))):
            other = ours.copy()
            other[index] = np.eye(5)[label]
            assert promised(other) < promised(ours) + 1e-4


@settings(max_examples=25)
@given(hnp.arrays(np.float32, (4, 3, 5, 3), elements=chances))
def test_a_volume_is_decided_as_a_whole(probability):
    probability = probability / np.maximum(probability.sum(-1, keepdims=True), 1e-3)
    rule = decision.rule("dice", lambda: iter(probability), ORGANS)
    planes = np.stack([rule(plane) for plane in probability])
    assert (planes == decide("dice", probability, ORGANS)).all()


@pytest.mark.parametrize("task", [BINARY, REGIONS, ORGANS])
def test_what_is_certain_stays(task):
    labels = np.random.default_rng(0).integers(0, 2, (6, 7, task.mask_channels))
    mask = labels if not task.one_hot else np.eye(3)[labels[..., 0] + labels[..., 1]]
    assert (decide("dice", mask.astype(np.float32), task) == mask).all()


def test_drawn_truths_have_the_higher_dice():
    # A disc whose border is uncertain: independent pixels, so that the marginals say everything.
    rows, columns = np.mgrid[:40, :40] - 19.5
    p = 1 / (1 + np.exp((np.hypot(rows, columns) - 8) / 4))
    truths = np.random.default_rng(0).random((500, 40, 40)) < p
    ours, probable = (decide(m, p[..., None], BINARY)[..., 0] for m in decision.METHODS[::-1])
    reached = [
        metrics.dice(np.broadcast_to(mask, truths.shape), truths, axis=(1, 2))
        for mask in (ours, probable)
    ]
    gain = reached[0] - reached[1]
    assert ours.sum() > probable.sum()
    assert gain.mean() > 5 * gain.std() / np.sqrt(len(gain)) > 0


def test_the_probable_decision_is_that_of_fusion():
    p = np.random.default_rng(1).random((5, 5, 3))
    assert (decide("probable", p, ORGANS) == fusion.decide(p, ORGANS)).all()


def test_sums_over_a_large_volume_are_exact_enough_for_a_small_gain():
    """Row by row in float32, 200,000 times 0.97 comes out too small by more than what is gained."""
    p = np.zeros((200_000, 3), np.float32)
    p[:, 1] = 0.97
    p[:1000, 1] = 0.495  # worth marking, since half of the promised Dice is 0.492
    p[:, 0] = 1 - p[:, 1]
    assert decide("dice", p, ORGANS)[:1000, 1].all()
    assert not decide("probable", p, ORGANS)[:1000, 1].any()
