"""Empty-mask policies, bootstrap intervals, tables."""

import numpy as np
import pytest

from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.types import InputError

EMPTY = np.zeros((30, 40), np.uint8)
SQUARE = EMPTY.copy()
SQUARE[10:20, 10:20] = 1
SHIFTED = np.roll(SQUARE, 5, 1)
SPACING = (1.0, 0.5)
DIAGONAL = np.hypot(30 * 1.0, 40 * 0.5)
# Of dice, iou, sensitivity, precision, hd95, assd, nsd.
WORST = (0, 0, 0, 0, DIAGONAL, DIAGONAL, 0)
# Half of the square overlaps, and it is moved by 5 pixels of 0.5; the mean distance and the share
# within the tolerance are by a loop over all pairs of the 36 outline pixels of each.
MOVED = (0.5, 1 / 3, 0.5, 0.5, 2.5, 49 / 36, 16 / 36)


def score(prediction, reference, case="a", class_name="lesion", policy="strict"):
    return aggregate.score_case(case, class_name, prediction, reference, SPACING, 1.0, policy)


@pytest.mark.parametrize(
    ("prediction", "reference", "strict", "ignore"),
    [
        (EMPTY, EMPTY, (1, 1, 1, 1, 0, 0, 1), (np.nan,) * 7),
        (EMPTY, SQUARE, WORST, (0, 0, 0, *(np.nan,) * 4)),
        (SQUARE, EMPTY, WORST, (0, 0, np.nan, 0, *(np.nan,) * 3)),
        (SHIFTED, SQUARE, MOVED, MOVED),
    ],
    ids=["both-empty", "prediction-empty", "reference-empty", "none-empty"],
)
def test_policies(prediction, reference, strict, ignore):
    for policy, expected in (("strict", strict), ("ignore", ignore)):
        one = score(prediction, reference, policy=policy)
        np.testing.assert_allclose([one.values[m] for m in aggregate.METRICS], expected)
        assert one.prediction_empty == (prediction is EMPTY)
        assert one.reference_empty == (reference is EMPTY)


def test_unknown_policy():
    with pytest.raises(InputError, match="empty-mask policy: 'lenient'"):
        score(SQUARE, SQUARE, policy="lenient")


def test_predicting_nothing_is_never_rewarded():
    def hd95(policy):
        moved = score(SHIFTED, SQUARE, "a", policy=policy)
        nothing = score(EMPTY, SQUARE, "b", policy=policy)
        return aggregate.table([moved, nothing])["lesion"]["hd95"]

    strict = hd95("strict")
    assert strict.mean == pytest.approx((2.5 + DIAGONAL) / 2) and strict.n_valid == 2
    ignore = hd95("ignore")
    assert ignore.mean == pytest.approx(2.5) and (ignore.n_valid, ignore.n_cases) == (1, 2)


def test_summary_of_known_numbers():
    summary = aggregate.summarize([1.0, 2.0, 3.0, 4.0, float("nan")])
    assert summary.mean == 2.5
    assert summary.sd == pytest.approx(1.2909944)  # sqrt(5 / 3)
    assert (summary.n_valid, summary.n_cases) == (4, 5)
    assert 1.0 <= summary.low < 2.5 < summary.high <= 4.0


def test_bootstrap_interval_is_deterministic_and_covers_like_the_normal_one():
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    first, again = aggregate.summarize(values), aggregate.summarize(values)
    assert first == again
    # For 400 normal cases the percentile interval is mean -+ 1.96 sd / 20 within a few per cent.
    half = 1.96 * values.std(ddof=1) / 20
    assert first.low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert first.high == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_summary_of_too_few_cases():
    none = aggregate.summarize([float("nan")])
    assert np.isnan([none.mean, none.sd, none.low, none.high]).all() and none.n_valid == 0
    one = aggregate.summarize([0.7])
    assert one.mean == 0.7 and np.isnan([one.sd, one.low, one.high]).all() and one.n_valid == 1


def test_summary_of_equal_cases():
    equal = aggregate.summarize([0.5, 0.5, 0.5])
    assert (equal.mean, equal.sd, equal.low, equal.high) == (0.5, 0.0, 0.5, 0.5)


def test_table_of_several_classes():
    def table(policy):
        return aggregate.table(
            [
                score(SQUARE, SQUARE, "a", "disc", policy),
                score(SHIFTED, SQUARE, "a", "cup", policy),
                score(EMPTY, SQUARE, "b", "disc", policy),
                score(EMPTY, EMPTY, "b", "cup", policy),
            ]
        )

    strict = table("strict")
    assert list(strict) == ["disc", "cup", aggregate.ALL_CLASSES]
    assert strict["disc"]["dice"].mean == 0.5  # 1, 0
    assert strict["cup"]["dice"].mean == 0.75  # 0.5, 1
    assert strict[aggregate.ALL_CLASSES]["dice"].mean == pytest.approx((0.75 + 0.5) / 2)
    assert strict[aggregate.ALL_CLASSES]["dice"].n_cases == 2
    ignore = table("ignore")
    assert ignore["cup"]["dice"].mean == 0.5 and ignore["cup"]["dice"].n_valid == 1
    assert ignore[aggregate.ALL_CLASSES]["dice"].mean == pytest.approx((0.75 + 0.0) / 2)


def test_table_of_one_class_has_one_row():
    assert list(aggregate.table([score(SQUARE, SQUARE)])) == ["lesion"]
