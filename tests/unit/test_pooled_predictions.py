"""The predictions of several folders, of the folds of a cross-validation say, scored as one."""

import csv
import json
import shutil

import numpy as np
import pytest

from medsegdiff_jax import atomic, imaging, scored_files, scoring
from medsegdiff_jax.types import InputError, Task

TASK = Task(("lesion",), (255,), True, 1)
# Case -> (columns of the prediction, of the reference, group) of masks of 8 columns.
FOLDS = {
    "fold0": {"a": (4, 4, "p"), "b": (4, 2, "p")},
    "fold1": {"c": (6, 2, "q"), "d": (3, 3, "r"), "e": (0, 3, "r")},
}
DICE = {"a": 1.0, "b": 2 / 3, "c": 0.5, "d": 1.0, "e": 0.0}


def write_mask(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.where(np.arange(8) < columns, 255, 0) * np.ones((8, 1))
    imaging.write_png(path, mask.astype(np.uint8))


def write_run(folder, cases, also="mask", **changes):
    entries = {case: {"files": dict.fromkeys(("mask", also), [f"{case}.png"])} for case in cases}
    made = {"checkpoint": f"of {folder.name}", "sampling": {"steps": 10}, "task": TASK.to_json()}
    atomic.write_json(folder / "run.json", {**made, "cases": entries, **changes})


@pytest.fixture
def folds(tmp_path):
    """predictions/<fold>, and references/<fold>/masks with groups.csv."""
    for fold, cases in FOLDS.items():
        lines = ["name,group"]
        for case, (predicted, reference, group) in cases.items():
            write_mask(tmp_path / "predictions" / fold / f"{case}.png", predicted)
            write_mask(tmp_path / "references" / fold / "masks" / f"{case}.png", reference)
            lines.append(f"{case},{group}")
        (tmp_path / "references" / fold / "groups.csv").write_text("\n".join(lines))
        write_run(tmp_path / "predictions" / fold, cases)
    return [[tmp_path / kind / fold for fold in FOLDS] for kind in ("predictions", "references")]


def test_every_case_counts_once_whatever_its_folder(folds, tmp_path):
    predictions, references = folds
    result = scoring.evaluate(predictions, references, None, "strict", 2.0)
    assert {score.case: pytest.approx(score.values["dice"]) for score in result.scores} == DICE
    dice = result.table["lesion"]["dice"]
    assert dice.mean == pytest.approx(np.mean(list(DICE.values()))) and dice.n_cases == 5
    assert result.groups == {c: one[2] for cases in FOLDS.values() for c, one in cases.items()}
    assert result.run["predictions"] == [str(folder) for folder in predictions]
    assert result.run["checkpoint"] == "of fold0; of fold1"
    assert result.run["sampling"] == {"steps": 10}

    scoring.write_report(result, tmp_path / "report")
    with (tmp_path / "report" / "per_case.csv").open() as file:
        of_case = {row["case"]: row["predictions"] for row in csv.DictReader(file)}
    assert of_case == {c: str(f) for f in predictions for c in FOLDS[f.name]}
    stored = json.loads((tmp_path / "report" / "metrics.json").read_text())["folders"]
    for folder in predictions:
        own = [DICE[case] for case in FOLDS[folder.name]]
        assert stored[str(folder)]["dice"]["mean"] == pytest.approx(np.mean(own))
        assert stored[str(folder)]["dice"]["n_cases"] == len(own)
    # Its two cases are of one group.
    assert stored[str(predictions[0])]["dice"]["low"] is None
    page = (tmp_path / "report" / "report.html").read_text()
    assert "0.8333" in page and f"Evaluation of 2 folders, {predictions[0]} first" in page
    first, second = scoring.format_folders(result).splitlines()
    assert first.startswith(f"{predictions[0]}: Dice 0.8333 [") and first.endswith("of 2")
    assert second.startswith(f"{predictions[1]}: Dice 0.5000 [") and second.endswith("of 3")


def test_one_folder_is_scored_as_before(folds, tmp_path):
    (predictions, _), (references, _) = folds
    result = scoring.evaluate([predictions], [references], None, "strict", 2.0)
    assert scoring.format_folders(result) == "" and not result.dice_of_folders
    scoring.write_report(result, tmp_path / "report")
    assert "predictions" not in (tmp_path / "report" / "per_case.csv").read_text().splitlines()[0]


def test_undefined_values_are_left_out_by_ignore(folds, tmp_path):
    (predictions, _), (references, _) = folds
    first, second = FOLDS["fold0"]
    for path in (predictions / f"{first}.png", references / "masks" / f"{first}.png"):
        write_mask(path, 0)
    expected = {"strict": ((1 + DICE[second]) / 2, 2), "ignore": (DICE[second], 1)}
    for policy, (dice, n_valid) in expected.items():
        result = scoring.evaluate([predictions], [references], None, policy, 2.0)
        found = result.table["lesion"]["dice"]
        assert (found.mean, found.n_valid, found.n_cases) == (pytest.approx(dice), n_valid, 2)
        scoring.write_report(result, tmp_path / policy)
        stored = json.loads((tmp_path / policy / "metrics.json").read_text())
        assert stored["empty_mask_policy"] == policy
        with (tmp_path / policy / "per_case.csv").open(newline="") as file:
            rows = {row["case"]: row for row in csv.DictReader(file)}
        assert rows[first]["dice"] == {"strict": "1.0", "ignore": "nan"}[policy]


def test_references_may_lie_in_one_folder(folds, tmp_path):
    predictions, references = folds
    shutil.copytree(references[1], references[0], dirs_exist_ok=True)
    (references[0] / "groups.csv").unlink()
    result = scoring.evaluate(predictions, references[:1], None, "strict", 2.0)
    assert result.table["lesion"]["dice"].n_cases == 5 and result.groups == {}
    with pytest.raises(InputError, match="two references of one case"):
        scoring.evaluate(predictions, references, None, "strict", 2.0)


def test_a_case_has_one_prediction(folds):
    predictions, references = folds
    write_mask(predictions[1] / "a.png", 1)
    write_run(predictions[1], [*FOLDS["fold1"], "a"])
    with pytest.raises(InputError, match=r"fold1: has a prediction of a, as .*fold0"):
        scoring.evaluate(predictions, references, None, "strict", 2.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sampling.steps", {"sampling": {"steps": 0}}),
        ("task.classes", {"task": Task(("disc",), (255,), True, 1).to_json()}),
        ("trainings", {"trainings": 3}),
    ],
)
def test_folders_that_were_made_otherwise_are_not_pooled(folds, field, value):
    predictions, references = folds
    write_run(predictions[1], FOLDS["fold1"], **value)
    with pytest.raises(InputError, match=f"fold1: was made with another {field} than .*fold0"):
        scoring.evaluate(predictions, references, None, "strict", 2.0)


def test_all_cases_have_a_group_or_none_has(folds):
    predictions, references = folds
    (references[1] / "groups.csv").unlink()
    message = (
        r"fold0/groups\.csv: has no line for case c and 2 more; there is no .*fold1/groups\.csv"
    )
    with pytest.raises(InputError, match=message):
        scoring.evaluate(predictions, references, None, "strict", 2.0)


def test_a_case_may_have_its_group_in_several_files(folds):
    predictions, references = folds
    lines = [(folder / "groups.csv").read_text() for folder in references]
    (references[0] / "groups.csv").write_text(lines[0] + lines[1].removeprefix("name,group"))
    assert scoring.evaluate(predictions, references, None, "strict", 2.0).groups["c"] == "q"
    (references[0] / "groups.csv").write_text(lines[0] + "\nc,p")
    with pytest.raises(InputError, match=r"fold1/groups\.csv: group of case c is q, elsewhere p"):
        scoring.evaluate(predictions, references, None, "strict", 2.0)


@pytest.mark.parametrize("kind", ["members", "probability"])
@pytest.mark.parametrize("fold", [0, 1])
def test_what_was_saved_is_the_same_in_all_folders(folds, kind, fold):
    predictions, references = folds
    cases = FOLDS[predictions[fold].name]
    write_run(predictions[fold], cases, also=kind)
    with pytest.raises(InputError, match="fold1: c has other files .* than a in .*fold0"):
        scoring.evaluate(predictions, references, None, "strict", 2.0)


def test_probabilities_with_and_without_a_temperature_are_pointed_out(folds, caplog):
    predictions, references = folds
    for temperatures, said in (((1.5, 2.0), False), ((1.0, 1.0), False), ((1.0, 2.0), True)):
        for folder, temperature in zip(predictions, temperatures, strict=True):
            write_run(folder, FOLDS[folder.name], temperature=temperature)
        caplog.clear()
        scoring.evaluate(predictions, references, None, "strict", 2.0)
        assert ("scaled by a temperature, others not" in caplog.text) == said


def test_single_masks_and_those_of_raters_are_not_mixed(folds):
    predictions, references = folds
    (references[1] / "masks").rename(references[1] / "masks_anna")
    with pytest.raises(InputError, match="some have masks_<rater>/, others a single mask"):
        scoring.evaluate(predictions, references, None, "strict", 2.0)


@pytest.mark.parametrize("names", [("reference", "one"), ("one", "reference")])
def test_raters_are_told_by_the_layout_not_by_their_names(tmp_path, names):
    for folder, rater in zip("xy", names, strict=True):
        write_mask(tmp_path / folder / f"masks_{rater}" / f"{folder}.png", 3)
    found = scored_files.find_references([tmp_path / "x", tmp_path / "y"], TASK)
    assert {rater: list(masks) for rater, masks in found.items()} == {
        names[0]: ["x"],
        names[1]: ["y"],
    }
    write_mask(tmp_path / "z" / "masks" / "z.png", 3)
    for folder in "xy":
        with pytest.raises(InputError, match="some have masks_<rater>/, others a single mask"):
            scored_files.find_references([tmp_path / folder, tmp_path / "z"], TASK)


def test_the_report_counts_the_raters_of_a_case(folds):
    predictions, references = folds
    for folder, rater in zip(references, ("anna", "ben"), strict=True):
        (folder / "masks").rename(folder / f"masks_{rater}")
    found = scoring.evaluate(predictions, references, None, "strict", 2.0)
    assert found.run["compared with"] == "one annotation per case"
    shutil.copytree(references[0] / "masks_anna", references[0] / "masks_cleo")
    found = scoring.evaluate(predictions, references, None, "strict", 2.0)
    assert found.run["compared with"] == "the union of 1 to 2 raters"


def test_raters_of_several_folders_are_those_of_all(tmp_path):
    # One of them is called what the rater of a folder with one mask per case is called.
    for folder, rater, case in (("x", "reference", "a"), ("x", "ben", "a"), ("y", "ben", "b")):
        write_mask(tmp_path / folder / f"masks_{rater}" / f"{case}.png", 3)
    found = scored_files.find_references([tmp_path / "x", tmp_path / "y"], TASK)
    assert {rater: sorted(masks) for rater, masks in found.items()} == {
        "reference": ["a"],
        "ben": ["a", "b"],
    }
