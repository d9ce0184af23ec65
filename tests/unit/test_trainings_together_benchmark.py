"""What the benchmark of several trainings asks for, and how its rows are averaged."""

import pytest

from benchmarks import trainings_together


def test_the_rows_have_as_many_members_as_they_say():
    rows = trainings_together.settings(10, 3)
    members = {name: flags[0] for name, (_, flags) in rows.items()}
    assert members == {
        "alone": "--members=10",
        "alone, more members": "--members=30",
        "together, as many": "--members=4",
        "together": "--members=10",
        "condition model alone": "--steps=0",
        "condition model together": "--steps=0",
    }
    assert [together for together, _ in rows.values()] == [False, False, True, True, False, True]


def ensemble(members, dice, ged, diversity):
    """Two cases with these values."""
    values = {"dice": dice, "ged": ged, "diversity": diversity}
    of_cases = {name: dict(zip("ab", pair, strict=True)) for name, pair in values.items()}
    return {"members": members, "seconds": 1.0, "border_ece": 0.1, **of_cases}


def test_a_row_is_the_mean_over_trainings_and_cases():
    alone = [
        ensemble(2, (0.5, 0.75), (0.4, 0.6), (0.2, 0.4)),
        ensemble(2, (0.75, 1.0), (0.2, 0.4), (0.2, 0.0)),
    ]
    row = trainings_together.summarize("alone", alone, alone, {})
    assert row["dice"] == pytest.approx(0.75) and row["ged"] == pytest.approx(0.4)
    assert row["ged_without_self_pairs"] == pytest.approx(0.4 - 0.2 / 2)
    assert row["members"] == 2 and "dice_minus_alone" not in row

    together = [ensemble(4, (0.875, 1.0), (0.3, 0.3), (0.4, 0.4))]
    row = trainings_together.summarize("together", together, alone, {})
    mean, low, high = row["dice_minus_alone"]
    assert mean == pytest.approx(0.9375 - 0.75)
    # Each training and each case may be the only one that is drawn.
    assert low == pytest.approx(0.0) and high == pytest.approx(0.375)
    assert row["ged_minus_alone"][0] == pytest.approx(-0.1)
    one_patient = trainings_together.summarize("together", together, alone, {"a": "p", "b": "p"})
    assert one_patient["dice_minus_alone"][1:] == pytest.approx((0.0625, 0.3125))
