"""Tables of the quality benchmark: paired differences, seeds, costs, their place in a document."""

import numpy as np
import pytest

from benchmarks import quality_table
from medsegdiff_jax import metrics
from medsegdiff_jax.types import InputError


def test_pairing_finds_a_small_difference_between_scattered_cases():
    rng = np.random.default_rng(1)
    theirs = rng.uniform(0.2, 0.9, 100)
    ours = theirs + 0.01 + rng.normal(0, 0.01, 100)
    mean, low, high = quality_table.paired_difference(ours[None], theirs[None])
    assert low < 0.01 < high and low > 0 and high - low < 0.006
    np.testing.assert_allclose(mean, (ours - theirs).mean())
    # The normal approximation of the interval.
    half = 1.96 * (ours - theirs).std(ddof=1) / 10
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=5e-4)


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(2)
    theirs = rng.uniform(0.2, 0.9, (3, 100))
    noise = rng.normal(0, 0.01, (3, 100))
    agree = quality_table.paired_difference(theirs + 0.01 + noise, theirs)
    by_seed = np.array([[-0.02], [0.01], [0.04]])
    disagree = quality_table.paired_difference(theirs + by_seed + noise, theirs)
    assert agree[1] > 0.005 and disagree[1] < 0 < disagree[2]
    # Three seeds drawn from three: mean 0.01, standard deviation sqrt(0.0006 / 3).
    assert 0.04 < disagree[2] - disagree[1] < 4 * np.sqrt(0.0002) + 0.01


def test_cases_of_a_group_are_drawn_together():
    rng = np.random.default_rng(3)
    theirs = rng.uniform(0.2, 0.9, (2, 12))
    ours = theirs + rng.normal(0.01, 0.05, (2, 12))
    names = [f"{number:02d}" for number in range(12)]
    once = quality_table.paired_difference(ours, theirs)
    copied = [np.concatenate([dice] * 3, axis=1) for dice in (ours, theirs)]
    together = quality_table.paired_difference(*copied, groups=names * 3)
    assert together == pytest.approx(once)
    apart = quality_table.paired_difference(*copied)
    assert apart[2] - apart[1] < 0.8 * (once[2] - once[1])
    # A group counts with all its cases.
    unequal = quality_table.paired_difference(np.array([[1.0, 0.0, 0.0, 0.0]]), 0, list("abbb"))
    assert unequal == (0.25, 0.0, 1.0)


def row(model, dice, seed=0):
    """A row of two cases."""
    summary = {"mean": float(np.mean(dice)), "low": min(dice), "high": max(dice)}
    return {
        "model": model,
        "dataset": "a",
        "seed": seed,
        "commands": {"train.py": [f"--config.seed={seed}"]},
        "scores": {
            "run": {"checkpoint_sha256": "abc"},
            "classes": {"lesion": dict.fromkeys(("dice", "iou", "hd95"), summary)},
            "uncertainty": {
                "classes": {
                    "lesion": {
                        "ged": {"mean": 0.2 + seed / 10},
                        "interval_iou": {"mean": 0.7},
                        "diversity": {"mean": 0.3},
                    }
                },
                "calibration": {"lesion": {"border": {"ece": 0.03}}},
            },
        },
        "dice_of_cases": {"x": dice[0], "y": dice[1]},
        "sampling": {"steps": 2, "members": 3, "mirror": False},
        "cost": {"parameters": 4.94, "encode": 1.0, "denoise": 2.0},
        "seconds_per_case": 0.5,
        "stable_members": {"mean": 12.0 + seed, "cases": 20, "most": 50, "unstable": 1},
    }


def lines_of(rows, models=("V2", "eps")):
    return quality_table.table(rows, list(models)).splitlines()


def test_the_table_averages_seeds_and_compares_with_the_first_model():
    lines = lines_of([row("V2", (0.8, 0.9)), row("V2", (0.6, 0.7), 1), row("eps", (0.6, 0.8))])
    assert lines[:2] == ["**a**", ""] and lines[2].startswith("| model | seeds | Dice | minus V2 |")
    scores, doubt = "0.7500 [0.7000, 0.8000]", "0.2500 | 0.1500 | 0.7000 | 0.0300"
    in_pixels = "0.8 [0.7, 0.8]"
    assert lines[4] == f"| V2 | 2 | {scores} |  | {scores} | {in_pixels} | {doubt} |"
    # Of the seed that both have.
    assert lines[5].startswith("| eps | 1 | 0.7000 [0.6000, 0.8000] | -0.1500 [-0.2000, -0.1000] |")
    assert len({line.count("|") for line in lines[2:6]}) == 1


def test_rows_of_a_repeated_training_are_marked():
    rows = [row("eps", (0.6, 0.8)), row("V2", (0.8, 0.9)), row("V2", (0.6, 0.7), 1)]
    assert "(*)" not in "".join(lines_of(rows))
    rows[0]["scores"]["run"]["checkpoint_sha256"] = "other"
    assert [line.split(" | ")[0] for line in lines_of(rows)[4:6]] == ["| V2", "| eps (*)"]
    rows[0]["commands"]["train.py"] = ["another training"]
    assert "(*)" not in "".join(lines_of(rows))


def test_a_score_that_is_undefined_or_unmeasured_is_left_empty():
    single = row("V2", (0.8, 0.9)) | {"stable_members": None}
    for score in ("interval_iou", "diversity"):  # undefined for one member
        single["scores"]["uncertainty"]["classes"]["lesion"][score]["mean"] = None
    lines = lines_of([single])
    assert lines[4].endswith("| 0.2000 |  |  | 0.0300 |")
    assert lines[-1] == "| V2 | a | 4.94 | 2.00 | 13.0 |  | 0.50 |"
    del single["scores"]["uncertainty"]
    assert lines_of([single])[4].endswith("|  |  |  |  |")


def test_ged_without_self_pairs_is_that_of_different_samples():
    rng = np.random.default_rng(0)
    samples, raters = rng.random((4, 1, 6, 6)) > 0.5, rng.random((3, 1, 6, 6)) > 0.5

    def distance(a, b):
        return 1 - (a & b).sum() / (a | b).sum()

    pairs = [distance(a, b) for i, a in enumerate(samples) for j, b in enumerate(samples) if i != j]
    of_raters = np.mean([distance(a, b) for a in raters for b in raters])
    to_raters = np.mean([distance(a, b) for a in samples for b in raters])
    found = metrics.set_overlaps(samples[:, 0], raters[:, 0])
    single = row("V2", (0.8, 0.9))
    single["sampling"]["members"] = 4
    single["scores"]["uncertainty"]["classes"]["lesion"] |= {
        "ged": {"mean": float(found.energy_distance)},
        "diversity": {"mean": float(found.diversity)},
    }
    expected = 2 * to_raters - np.mean(pairs) - of_raters
    assert lines_of([single])[4].split(" | ")[7] == f"{expected:.4f}"


def test_costs_have_a_line_per_model_and_another_where_the_data_change_them():
    rows = [row("V2", (0.8, 0.9), seed) | {"dataset": name} for seed in (0, 1) for name in "ab"]
    volumes = row("V2", (0.8, 0.9)) | {"dataset": "c"}
    volumes["cost"] = {"parameters": 5.0, "encode": 1.0, "denoise": 3.0}
    without = row("unet", (0.8, 0.9)) | {"stable_members": None}
    without["cost"] = {"parameters": 2.0, "encode": 1.5, "denoise": 0.0}
    lines = lines_of([*rows, volumes, without], ("V2", "unet"))
    costs = lines[lines.index("**Cost**") + 4 :]
    assert costs == [
        "| V2 | a, b | 4.94 | 2.00 | 13.0 | 12.5 (4 of 80 more; 51.0 GFLOP) | 0.50 |",
        "| V2 | c | 5.00 | 3.00 | 19.0 | 12.0 (1 of 20 more; 73.0 GFLOP) | 0.50 |",
        "| unet | a | 2.00 |  | 1.5 |  | 0.50 |",
    ]


def test_only_the_text_between_the_marks_is_replaced(tmp_path):
    document = tmp_path / "results.md"
    document.write_text("a\n<!-- quality: p -->\nold\n<!-- end -->\nb\n<!-- end -->\n")
    quality_table.write_into(document, "p", "| new |")
    expected = "a\n<!-- quality: p -->\n| new |\n<!-- end -->\nb\n<!-- end -->\n"
    assert document.read_text() == expected
    with pytest.raises(InputError, match="quality: q"):
        quality_table.write_into(document, "q", "")
    assert document.read_text() == expected


def test_the_difference_between_models_knows_groups():
    rows = [row("V2", (0.8, 0.9)), row("eps", (0.6, 0.8))]
    apart = lines_of(rows)[5].split(" | ")[3]
    assert apart == "-0.1500 [-0.2000, -0.1000]"
    together = [one | {"group_of_cases": {"x": "p", "y": "p"}} for one in rows]
    assert lines_of(together)[5].split(" | ")[3] == "-0.1500 [-0.1500, -0.1500]"
