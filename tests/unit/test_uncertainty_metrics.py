"""Distribution, calibration and ranking against closed forms, and what scoring makes of them."""

import json

import numpy as np
import pytest
from scipy.special import expit, softmax

from medsegdiff_jax import atomic, fusion, metrics, uncertainty_scoring
from medsegdiff_jax.metrics import calibration, distribution, ranking
from medsegdiff_jax.types import InputError, Task, class_mask

LESION = Task(("lesion",), (1,), True, 3)
EXCLUSIVE = Task(("a", "b"), (1, 2), True, 1)
REGIONS = Task(("disc", "cup"), (1, 2), False, 3)


def halves(*columns):
    """Masks [n, 4, 8] that mark the first columns."""
    return np.arange(8) < np.array(columns)[:, None, None] * np.ones((1, 4, 1))


# --- distribution -----------------------------------------------------------------------------


def test_identical_samples_agree_and_one_sample_says_nothing_of_its_spread():
    same = distribution.set_overlaps(halves(4, 4, 4), halves(4))
    assert (same.sample_dice, same.diversity, same.volume_variation) == (1, 0, 0)
    assert (same.interval_iou, same.energy_distance, same.matched_iou) == (1, 0, 1)
    one = distribution.set_overlaps(halves(4), halves(2))
    spread = (one.sample_dice, one.diversity, one.volume_variation, one.interval_iou)
    assert np.isnan(spread).all()
    assert one.energy_distance == pytest.approx(2 * 0.5)  # IoU 8 / 16, each alone with itself
    assert one.max_dice == pytest.approx(2 * 8 / 24)


def test_overlaps_of_two_samples_and_two_raters_by_hand():
    found = distribution.set_overlaps(halves(2, 4), halves(4, 8))
    # IoU of samples and raters: 2/4, 2/8, 4/4, 4/8.
    np.testing.assert_allclose(found.across, [[0.5, 0.25], [1.0, 0.5]])
    expected = 2 * (1 - 0.5625) - (1 - 0.75) - (1 - 0.75)
    assert found.energy_distance == pytest.approx(expected)
    assert found.matched_iou == pytest.approx(max(0.5 + 0.5, 0.25 + 1.0) / 2)
    assert found.max_dice == pytest.approx((1 + 2 * 4 / 12) / 2)
    assert found.diversity == pytest.approx(0.5) and found.sample_dice == pytest.approx(2 / 3)
    assert found.interval_iou == pytest.approx(0.5)  # intersection over union below 40 samples
    assert found.volume_variation == pytest.approx(np.std([8, 16], ddof=1) / 12)


# --- calibration ------------------------------------------------------------------------------


def test_calibrated_coins_have_no_error_and_overconfident_ones_do():
    rng = np.random.default_rng(0)
    p = rng.uniform(0, 1, 400_000)
    y = (rng.uniform(0, 1, p.size) < p).astype(float)
    found = calibration.measure_calibration(p, y)
    assert found.ece < 0.005 and found.brier == pytest.approx(1 / 6, abs=2e-3)
    sure = calibration.measure_calibration(np.round(p), y)
    assert sure.ece == pytest.approx(0.25, abs=5e-3)  # mean of |p - round(p)|


def test_constants_and_sums_of_cases():
    p, y = np.full((2, 50), 0.7), np.repeat([[1.0], [0.0]], 50, axis=1)
    first, second = (calibration.measure_calibration(*pair) for pair in zip(p, y, strict=True))
    assert (first.ece, first.brier) == pytest.approx((0.3, 0.09))
    whole = first + second
    assert (whole.ece, whole.brier, whole.total) == pytest.approx((0.2, (0.09 + 0.49) / 2, 100))
    raters = calibration.measure_calibration(np.array([0.5]), np.array([0.5]))
    assert raters.ece == 0 and raters.brier == pytest.approx(0.25)  # each of two raters is one off


def test_the_band_is_as_wide_as_asked_in_units_of_the_spacing():
    mask = np.zeros((20, 24), bool)
    mask[6:14, 5:17] = True
    spacing = (1.0, 2.0)
    inside, outside = (np.argwhere(m) * spacing for m in (mask, ~mask))
    expected = np.zeros(mask.shape, bool)
    for index in np.ndindex(mask.shape):
        others = outside if mask[index] else inside
        nearest = np.sqrt(((others - np.array(index) * spacing) ** 2).sum(axis=1)).min()
        expected[index] = nearest <= 2.0
    np.testing.assert_array_equal(calibration.border_band(mask, spacing, 2.0), expected)
    for constant in (mask & False, mask | True):
        assert not calibration.border_band(constant, spacing, 2.0).any()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("one_hot", [False, True])
def test_the_temperature_of_sharpened_probabilities_is_found(temperature, one_hot):
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1.5, (60_000, 3))
    true = softmax(logits, axis=-1) if one_hot else expit(logits)
    if one_hot:
        drawn = (rng.uniform(0, 1, (len(true), 1)) > true.cumsum(axis=1)).sum(axis=1)
        y = np.eye(3)[np.minimum(drawn, 2)]
    else:
        y = (rng.uniform(0, 1, true.shape) < true).astype(float)
    sharpened = calibration.apply_temperature(true, 1 / temperature, one_hot=one_hot)
    found = calibration.fit_temperature(sharpened, y, one_hot=one_hot)
    assert found == pytest.approx(temperature, rel=0.03)
    scaled = calibration.apply_temperature(sharpened, found, one_hot=one_hot)
    if one_hot:
        np.testing.assert_array_equal(scaled.argmax(-1), sharpened.argmax(-1))
        np.testing.assert_allclose(scaled.sum(axis=-1), 1)
    else:
        np.testing.assert_array_equal(scaled >= 0.5, sharpened >= 0.5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: calibration.measure_calibration(np.ones(3), np.ones(4)), "shape"),
        (
            lambda: calibration.measure_calibration(
                np.ones((2, 3)), np.ones((2, 3)), np.ones(2, bool)
            ),
            "where: shape",
        ),
        (lambda: calibration.measure_calibration(np.full(3, 1.5), np.ones(3)), "probability"),
        (lambda: calibration.measure_calibration(np.ones(3), np.full(3, np.nan)), "reference"),
        (lambda: calibration.fit_temperature(np.ones(0), np.ones(0)), "no pixel"),
        (lambda: calibration.apply_temperature(np.ones(1), 0.0), "temperature: 0.0"),
        (lambda: ranking.rank_errors([1, 2], [1]), "uncertainty"),
    ],
)
def test_what_cannot_be_measured_is_named(call, words):
    with pytest.raises(InputError, match=words):
        call()


# --- ranking ----------------------------------------------------------------------------------


def test_risk_and_coverage_by_hand():
    found = ranking.rank_errors([3, 1, 2], [0.9, 0.3, 0.0])
    np.testing.assert_allclose(found.coverage, [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(found.risk, [0.3, 0.15, 0.4])
    np.testing.assert_allclose(found.optimal, [0.0, 0.15, 0.4])
    assert found.excess == pytest.approx(0.1) and found.uninformed == pytest.approx(0.4)
    assert found.spearman == pytest.approx(0.5)


def test_the_best_the_worst_and_no_order():
    error = np.array([0.1, 0.2, 0.4, 0.8])
    best, worst = ranking.rank_errors(error, error), ranking.rank_errors(-error, error)
    assert best.excess == 0 and best.spearman == pytest.approx(1)
    assert worst.aurc > worst.uninformed > best.aurc and worst.spearman == pytest.approx(-1)
    tied = ranking.rank_errors([1, 1, 1, 1], error)
    assert tied.aurc == pytest.approx(error.mean()) and np.isnan(tied.spearman)
    assert ranking.rank_errors([1, np.nan], [0.1, 0.2]) is None


def test_entropy_counts_where_something_is_predicted_or_in_doubt():
    assert ranking.region_entropy(np.zeros(10)) == 0
    assert ranking.region_entropy(np.array([0.0, 0.5, 1.0])) == pytest.approx(0.5)
    assert ranking.region_entropy(np.full(4, 0.5, np.float32)) == pytest.approx(1)
    # 0.722, 0.485 and 0.469 bits; the second is not in doubt enough, the third is predicted.
    found = ranking.region_entropy(np.array([0.2, 0.105, 0.9]))
    assert found == pytest.approx((0.7219 + 0.4690) / 2, abs=1e-4)


# --- scoring ----------------------------------------------------------------------------------


def case(name, probability):
    """A case of two samples, two raters and a constant probability."""
    raters = dict(zip("xy", halves(4, 6), strict=True))
    (first,) = uncertainty_scoring.dice_of_first(
        halves(4, 6).astype(np.uint8), raters["x"].astype(np.uint8), LESION
    )
    return uncertainty_scoring.score_case(
        name,
        "lesion",
        samples=halves(4, 6),
        first=first,
        probability=np.full((4, 8), probability),
        raters=raters,
        reference=raters["x"],
        spacing=(1.0, 1.0),
        policy="strict",
    )


def test_scores_of_cases_are_collected_and_become_json(tmp_path):
    cases = [case("a", 0.625), case("b", 0.1)]
    # On average the raters mark 5 of 8 columns: 0.625 is right on the whole.
    assert cases[0].calibration["image"].ece == pytest.approx(0, abs=1e-9)
    assert cases[1].calibration["image"].ece == pytest.approx(0.525)
    assert cases[0].values["ged"] == pytest.approx(0) and cases[0].rater_dice["y"] == 0.8
    found = uncertainty_scoring.collect(cases, [0.1, 0.3])
    assert found and found.table["lesion"]["sample_dice"].mean == pytest.approx(0.8)
    # Half of the two members mark the columns that one marks alone.
    assert [one.mean for one in found.dice_of_first["lesion"]] == pytest.approx([1, 0.8])
    # The case that is more in doubt has the smaller error, and everything else is tied.
    assert found.ranking["lesion"]["region_entropy"].spearman == pytest.approx(-1)
    atomic.write_json(tmp_path / "x.json", uncertainty_scoring.to_json(found))
    stored = json.loads((tmp_path / "x.json").read_text())
    assert stored["calibration"]["lesion"]["image"]["pixels"] == 64
    assert stored["ranking"]["lesion"]["sample_dice"]["spearman"] is None
    assert stored["dice_of_first"]["lesion"][1]["mean"] == pytest.approx(0.8)
    samples, calibration, ranking = uncertainty_scoring.format_table(found).split("class ")[1:]
    assert samples.split()[0] == "ged" and "lesion  0.0000" in samples
    assert "ece (border)" in calibration and ranking.split()[0] == "best"
    assert ranking.splitlines()[1].split() == [
        "lesion",
        "0.1500",
        "0.2000",
        "0.2000",
        "0.2500",
        "0.2000",
    ]


def test_without_members_probabilities_or_raters_there_is_nothing_to_report():
    mask = halves(4)[0]
    alone = uncertainty_scoring.score_case(
        "a",
        "lesion",
        samples=None,
        probability=None,
        raters={"x": mask},
        reference=mask,
        spacing=(1.0, 1.0),
        first=[],
        policy="strict",
    )
    found = uncertainty_scoring.collect([alone], [0.0])
    assert not found and not found.calibration and not found.ranking and not found.dice_of_first


def test_a_case_with_fewer_members_keeps_its_last_value():
    def scored(samples, reference, policy="strict"):
        return uncertainty_scoring.score_case(
            "a", "lesion", samples=samples, probability=None, raters={"x": reference},
            reference=reference, spacing=(1.0, 1.0), policy=policy,
            first=uncertainty_scoring.dice_of_first(
                samples.astype(np.uint8), reference.astype(np.uint8), LESION
            )[0],
        )  # fmt: skip

    one, three = scored(halves(2), halves(4)[0]), scored(halves(0, 8, 8), halves(8)[0])
    assert one.dice_of_first == pytest.approx([2 / 3])
    assert three.dice_of_first == [0, 1, 1]  # at a tie foreground, as in `fusion.decide`
    for policy, expected in (("strict", [5 / 9, 8 / 9, 8 / 9]), ("ignore", [1 / 3, 5 / 6, 5 / 6])):
        nothing = scored(halves(0, 0, 0), halves(0)[0], policy)
        found = uncertainty_scoring.collect([one, three, nothing], [0.0] * 3)
        means = [summary.mean for summary in found.dice_of_first["lesion"]]
        assert means == pytest.approx(expected)


@pytest.mark.parametrize("task", [EXCLUSIVE, REGIONS])
def test_the_vote_of_the_first_members_is_decided_as_everywhere(task, monkeypatch):
    monkeypatch.setattr(uncertainty_scoring, "_VOXELS", 7)
    rng = np.random.default_rng(0)
    *members, reference = rng.integers(0, 3, (6, 5, 9), dtype=np.uint8)
    found = uncertainty_scoring.dice_of_first(members, reference, task)
    for n in range(1, 6):
        fused = fusion.majority(members[:n], task)
        for index in range(2):
            ours, own = (class_mask(labels, task, index) for labels in (fused, reference))
            assert found[index][n - 1] == pytest.approx(float(metrics.dice(ours, own)))


def test_less_agreement_is_more_doubt_and_empty_raters_follow_the_policy():
    empty, full = np.zeros((2, 4, 8)), np.ones((2, 4, 8))
    samples = {"agree": halves(4, 4), "differ": halves(2, 6)}

    def collected(policy):
        cases = [
            uncertainty_scoring.score_case(
                name,
                "lesion",
                samples=masks,
                probability=None,
                raters={"x": marks[0], "y": marks[1]},
                reference=marks[0],
                spacing=(1.0, 1.0),
                first=[],
                policy=policy,
            )
            for (name, masks), marks in zip(samples.items(), (empty, full), strict=True)
        ]
        return uncertainty_scoring.collect(cases, [0.1, 0.7])

    strict = collected("strict")
    for score in ("sample_dice", "volume_variation"):
        assert strict.ranking["lesion"][score].spearman == pytest.approx(1)
        assert strict.ranking["lesion"][score].excess == 0
    found = strict.rater_dice["lesion"]["x"]
    assert found.mean == 1 and found.n_valid == 2
    ignored = collected("ignore")
    assert ignored.rater_dice["lesion"]["x"].n_valid == 1


def test_the_interval_of_forty_samples_leaves_one_out_at_each_end():
    samples = halves(0, *[4] * 38, 8)
    assert distribution.set_overlaps(samples, halves(4)).interval_iou == 1
    assert distribution.set_overlaps(samples[:-1], halves(4)).interval_iou == 0
