"""Decisions, mean, vote, STAPLE and uncertainty."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medsegdiff_jax import fusion, imaging
from medsegdiff_jax.types import InputError, Task

MEMBERS_ALONE = ("mean", "vote", "staple")
BINARY = Task(("lesion",), (1,), True, 3)
EXCLUSIVE = Task(("a", "b"), (1, 2), True, 1)
REGIONS = Task(("disc", "cup"), (1, 2), False, 3)

stacks = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 11), st.integers(1, 30)), elements=st.integers(0, 1)
)
# Its sums in two orders give a rate of 1 + 2e-16.
ROUNDED_UP = np.ones((8, 26), np.uint8)
ROUNDED_UP[(0, 0, 0, 1, 1, 2, 5, 5), (0, 3, 5, 0, 1, 4, 1, 2)] = 0


@settings(max_examples=60)
@given(stacks)
@example(ROUNDED_UP)
def test_staple_of_any_stack_is_finite(raters):
    result = fusion.staple(raters)
    for values in (result.probability, result.sensitivity, result.specificity):
        assert np.isfinite(values).all()
        assert (values >= 0).all() and (values <= 1).all()
    assert result.probability.shape == raters.shape[1:]


def test_staple_of_exclusive_classes_is_each_against_the_rest():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, (12, 10))
    raters = np.where(rng.random((5, 12, 10)) < 0.2, rng.integers(0, 3, (5, 12, 10)), truth)
    members = np.eye(3, dtype=np.float32)[raters]
    each = np.stack([fusion.staple(members[..., k] > 0).probability for k in range(3)], axis=-1)
    found = fusion.fuse(members, EXCLUSIVE, "staple")
    np.testing.assert_allclose(found, each / each.sum(-1, keepdims=True), atol=1e-6)
    assert np.abs(found - fusion.fuse(members, EXCLUSIVE, "vote")).max() > 0.05


@settings(max_examples=50)
@given(hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 1)), st.integers(1, 9))
def test_staple_of_unanimous_raters_is_their_mask(mask, raters):
    result = fusion.staple(np.stack([mask] * raters))
    np.testing.assert_array_equal(result.probability, mask)
    np.testing.assert_array_equal([result.sensitivity, result.specificity], 1.0)


def synthetic_raters(sensitivity, specificity, shape=(200, 200), seed=3):
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[: shape[0], : shape[1]]
    truth = (yy - 90) ** 2 + (xx - 110) ** 2 < 60**2
    draw = rng.random((len(sensitivity), *shape))
    p, q = (np.asarray(rate)[:, None, None] for rate in (sensitivity, specificity))
    return truth, np.where(truth, draw < p, draw >= q)


def test_staple_recovers_known_raters():
    sensitivity = [0.95, 0.9, 0.8, 0.6, 0.7]
    specificity = [0.99, 0.9, 0.95, 0.85, 0.6]
    truth, raters = synthetic_raters(sensitivity, specificity)
    result = fusion.staple(raters)
    # 11 304 foreground pixels: standard error below 0.005 for each rate.
    np.testing.assert_allclose(result.sensitivity, sensitivity, atol=0.02)
    np.testing.assert_allclose(result.specificity, specificity, atol=0.02)
    error = np.mean((result.probability >= 0.5) != truth)
    majority_error = np.mean((fusion.vote(raters) >= 0.5) != truth)
    assert error < 0.7 * majority_error


def test_staple_follows_order_and_exchange_of_the_labels():
    _, raters = synthetic_raters([0.9, 0.8, 0.7, 0.85], [0.95, 0.9, 0.97, 0.8], (40, 40))
    result = fusion.staple(raters)
    reverse = fusion.staple(raters[::-1])
    np.testing.assert_allclose(reverse.probability, result.probability, atol=1e-9)
    np.testing.assert_allclose(reverse.sensitivity, result.sensitivity[::-1], atol=1e-9)
    negative = fusion.staple(~raters)  # foreground <-> background, sensitivity <-> specificity
    np.testing.assert_allclose(negative.probability, 1 - result.probability, atol=1e-9)
    np.testing.assert_allclose(negative.sensitivity, result.specificity, atol=1e-9)


def test_staple_is_neither_the_vote_nor_its_square():
    _, raters = synthetic_raters([0.95, 0.9, 0.8, 0.6, 0.7], [0.99, 0.9, 0.95, 0.85, 0.6])
    probability, vote = fusion.staple(raters).probability, fusion.vote(raters)
    assert np.abs(probability - vote).max() > 0.3
    assert np.abs(probability - vote**2).max() > 0.3


def test_staple_overrules_a_contrarian():
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    result = fusion.staple(np.stack([mask, mask, ~mask]))
    np.testing.assert_allclose(result.probability, mask, atol=1e-6)
    assert result.sensitivity[2] < 1e-6 and result.specificity[2] < 1e-6


@pytest.mark.parametrize("decisions", [np.full((2, 3), 0.5), np.zeros((0, 3)), np.zeros((2, 0))])
def test_staple_refuses_what_is_not_a_stack_of_decisions(decisions):
    with pytest.raises(InputError, match="^decisions: "):
        fusion.staple(decisions)


def test_decide():
    probability = np.array([0.0, 0.49999, 0.5, 1.0])[:, None]
    assert fusion.decide(probability, BINARY).tolist() == [[0], [0], [1], [1]]
    assert fusion.decide(probability, BINARY).dtype == np.uint8
    assert fusion.decide(np.array([0.6, 0.7]), REGIONS).tolist() == [1, 1]
    exclusive = np.array([[0.4, 0.35, 0.25], [0.2, 0.45, 0.35], [0.4, 0.2, 0.4]])
    assert fusion.decide(exclusive, EXCLUSIVE).tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_mean_and_vote():
    members = np.array([0.9, 0.4, 0.4], np.float32).reshape(3, 1, 1, 1, 1)
    assert fusion.fuse(members, BINARY, "mean").item() == pytest.approx(1.7 / 3)
    assert fusion.fuse(members, BINARY, "vote").item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("task", [BINARY, EXCLUSIVE, REGIONS])
@pytest.mark.parametrize("method", MEMBERS_ALONE)
def test_fuse_shape_range_and_normalisation(task, method):
    rng = np.random.default_rng(0)
    members = rng.random((7, 2, 8, 9, task.mask_channels)).astype(np.float32)
    if task.one_hot:
        members /= members.sum(-1, keepdims=True)
    fused = fusion.fuse(members, task, method)
    assert fused.shape == (2, 8, 9, task.mask_channels) and fused.dtype == np.float32
    assert (fused >= 0).all() and (fused <= 1).all()
    if task.one_hot:
        np.testing.assert_allclose(fused.sum(-1), 1, atol=1e-6)
    # A case does not depend on its batch.
    np.testing.assert_array_equal(fusion.fuse(members[:, 1:], task, method)[0], fused[1])
    # One member: its own probability, or its decision.
    alone = fusion.fuse(members[:1], task, method)
    expected = members[0] if method == "mean" else fusion.decide(members[0], task)
    np.testing.assert_allclose(alone, expected, atol=1e-7)


def test_fuse_staple_is_staple_per_case_and_channel():
    rng = np.random.default_rng(1)
    members = rng.random((5, 2, 12, 12, 2)).astype(np.float32)
    fused = fusion.fuse(members, REGIONS, "staple")
    for b in range(2):
        for k in range(2):
            expected = fusion.staple(members[:, b, :, :, k] >= 0.5).probability
            np.testing.assert_allclose(fused[b, ..., k], expected, atol=1e-7)


@pytest.mark.parametrize("task", [BINARY, EXCLUSIVE])
def test_a_blend_is_half_members_half_condition_model(task):
    channels = np.random.default_rng(0).dirichlet(np.ones(3), (6, 4, 5)).astype(np.float32)
    members, own = channels[:5, None], channels[5:]
    members, own = members[..., : task.mask_channels], own[..., : task.mask_channels]
    blend = fusion.fuse(members, task, "blend", own)
    np.testing.assert_allclose(blend, (members.mean(axis=0) + own) / 2, atol=1e-6)
    assert blend.dtype == np.float32
    for method in MEMBERS_ALONE:
        without = fusion.fuse(members, task, method)
        np.testing.assert_array_equal(fusion.fuse(members, task, method, own), without)
    with pytest.raises(InputError, match="fusion: a blend needs"):
        fusion.fuse(members, task, "blend")


def test_a_growing_blend_is_judged_by_its_members():
    members = np.random.default_rng(0).random((4, 3, 3, 1)).astype(np.float32)
    growing = [fusion.RunningFusion(BINARY, method) for method in ("blend", "mean")]
    for member in members:
        np.testing.assert_array_equal(*(one.add(member) for one in growing))


def test_fuse_refuses_an_unknown_method():
    with pytest.raises(InputError, match="fusion: 'median'"):
        fusion.fuse(np.zeros((1, 1, 2, 2, 1)), BINARY, "median")


def test_uncertainty():
    def entropy(members, task):
        return fusion.uncertainty(np.asarray(members, np.float32)[:, None, None, None], task).item()

    assert entropy([[1.0], [0.0]], BINARY) == 1.0
    assert entropy([[1.0], [1.0]], BINARY) == 0.0
    # -(0.25 log2 0.25 + 0.75 log2 0.75) = 0.5 + 0.3112781
    assert entropy([[0.5], [0.0]], BINARY) == pytest.approx(0.8112781, abs=1e-6)
    assert entropy([[0.5, 0.0], [0.0, 0.0]], REGIONS) == pytest.approx(0.8112781, abs=1e-6)
    assert entropy([[1, 0, 0], [0, 1, 0], [0, 0, 1]], EXCLUSIVE) == pytest.approx(1, abs=1e-6)
    assert entropy([[1, 0, 0], [0, 1, 0]], EXCLUSIVE) == pytest.approx(1 / np.log2(3), abs=1e-6)


@pytest.mark.parametrize(
    "task",
    [
        Task(("lesion",), (255,), True, 1),
        Task(("a", "b"), (2, 5), True, 1),
        Task(("disc", "cup", "vessel"), (1, 2, 4), False, 1),
    ],
)
@pytest.mark.parametrize("raters", [1, 2, 3, 7])
def test_the_majority_of_label_maps_is_that_of_their_masks(task, raters):
    values = range(8) if not task.exclusive else (0, *task.label_values)
    labels = np.random.default_rng(raters).choice(list(values), (raters, 9, 11)).astype(np.uint8)
    masks = imaging.labels_to_mask(labels, task)
    expected = imaging.mask_to_labels(fusion.decide(masks.mean(axis=0), task), task)
    found = fusion.majority(list(labels), task)
    assert found.dtype == labels.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("task", [BINARY, EXCLUSIVE, REGIONS])
@pytest.mark.parametrize("method", MEMBERS_ALONE)
def test_a_growing_ensemble_is_fused_like_one_of_its_size(task, method):
    members = np.random.default_rng(0).dirichlet(np.ones(3), (6, 4, 5)).astype(np.float32)
    members = members[..., : task.mask_channels]
    growing = fusion.RunningFusion(task, method)
    for n in range(1, 7):
        whole = fusion.fuse(members[:n, None], task, method)[0]
        np.testing.assert_allclose(growing.add(members[n - 1]), whole, atol=1e-6)


def test_a_growing_ensemble_needs_a_known_method():
    with pytest.raises(InputError, match="median"):
        fusion.RunningFusion(BINARY, "median")


@pytest.mark.parametrize("method", ["mean", "blend", "vote", "staple"])
def test_no_member_cannot_be_fused(method):
    nothing = np.zeros((0, 4, 4, 1))
    with pytest.raises(InputError, match="members: there are none to fuse"):
        fusion.fuse(nothing, Task(("a",), (1,), True, 1), method, np.zeros((4, 4, 1)))
