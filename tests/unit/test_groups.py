"""Cases that belong together: never split apart by hash, and drawn together for intervals."""

import csv
import itertools
import json
import shutil

import numpy as np
import pytest

from data.catalogue import share
from data.fingerprint import leaks
from data.folder import Builder
from data.folder.decathlon import decathlon_catalogue
from data.plain_folder import write_cases
from data.staging import Facts
from data.survey import survey
from medsegdiff_jax import imaging, scoring
from medsegdiff_jax.groups import read_groups, write_groups
from medsegdiff_jax.metrics import aggregate
from medsegdiff_jax.types import InputError, Task
from tests.layouts import case_ids, touch

# Patient p0 has 1 image, p1 has 2, ..., p9 has 10.
PATIENTS = {
    f"{patient}_{number}": f"p{patient}" for patient in range(10) for number in range(patient + 1)
}
TASK = Task(("foreground",), (255,), True, 1)


@pytest.fixture
def root(tmp_path):
    """Empty files, since an index looks at names alone."""
    for case in PATIENTS:
        touch(f"images/{case}.png", f"masks/{case}.png")(tmp_path / "input")
    write_groups(tmp_path / "input", PATIENTS)
    return tmp_path / "input"


def split_names(root, fraction=0.2):
    return case_ids(Builder.catalogue(root, "", fraction))


def patients_of(splits):
    return {split: {PATIENTS[one] for one in cases} for split, cases in splits.items()}


def test_patients_are_split_and_not_their_images(root):
    splits = split_names(root)
    assert sorted(sum(splits.values(), [])) == sorted(PATIENTS)
    found = patients_of(splits)
    assert {split: len(patients) for split, patients in found.items()} == {
        "train": 7,
        "validation": 2,
        "test": 1,
    }
    assert sum(map(len, found.values())) == 10  # nobody is in two
    # Drawn by the names of the patients, as cases of these names would be.
    assert found["test"] == set(share([f"p{n}" for n in range(10)], 0.1)[1])
    (root / "groups.csv").unlink()
    assert sum(map(len, patients_of(split_names(root)).values())) > 10


def test_volumes_of_a_patient_stay_together(tmp_path):
    for case in PATIENTS:
        touch(f"imagesTr/{case}.nii.gz", f"labelsTr/{case}.nii.gz")(tmp_path)
    files = [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in PATIENTS]
    about = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a"}, "training": files}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    write_groups(tmp_path, PATIENTS)
    found = decathlon_catalogue(tmp_path, 0.2)
    assert tmp_path / "groups.csv" in found.extra_files  # another file is another dataset
    assert all(case.group == PATIENTS[case.id] for case in found.cases)
    assert sum(map(len, patients_of(case_ids(found)).values())) == 10


def test_a_test_list_that_divides_a_patient_is_reported(root):
    (root / "test.txt").write_text("9_0\n8_0\n0_0\n")
    catalogue = Builder.catalogue(root, "", 0.2)
    assert root / "groups.csv" in catalogue.extra_files
    # Validation is drawn by patients of what the list leaves.
    splits = case_ids(catalogue)
    found = patients_of(splits)
    assert not found["train"] & found["validation"] and len(splits["test"]) == 3
    contents = {path: str(path) for case in catalogue.cases for path in case.files}
    (note,) = leaks(catalogue, contents)
    where = {one: "train" if one in found["train"] else "validation" for one in ("p8", "p9")}
    assert note.startswith("a group in two splits: ")
    assert all(f"{one} ({split}, test)" in note for one, split in where.items())
    assert "p0" not in note


def square(case, folder):
    """A picture, whose size depends on the patient, with a mask."""
    labels = np.zeros((16, 16), np.uint8)
    labels[3 : 6 + int(case[0]), 3:9] = 255
    imaging.write_png(folder / "masks" / f"{case}.png", labels)
    imaging.write_png(folder / "images" / f"{case}.png", labels // 2)


def test_intervals_are_over_the_patients_that_the_split_was_written_with(root, tmp_path):
    for case in PATIENTS:
        square(case, root)
    (root / "test.txt").write_text("\n".join(one for one in PATIENTS if one[0] in "234") + "\n")
    catalogue = Builder.catalogue(root, "", 0.2)
    output, predictions = tmp_path / "test", tmp_path / "predictions"
    write_cases(catalogue, catalogue.splits["test"], output)
    expected = {one: PATIENTS[one] for one in PATIENTS if one[0] in "234"}
    assert read_groups([output], expected) == expected
    shutil.copytree(output / "masks", predictions)
    imaging.write_png(predictions / "2_0.png", np.zeros((16, 16), np.uint8))
    files = {one: {"files": {"mask": [f"{one}.png"], "members": [f"{one}.png"] * 2}}
             for one in expected}  # fmt: skip
    (predictions / "run.json").write_text(json.dumps({"task": TASK.to_json(), "cases": files}))
    result = scoring.evaluate([predictions], [output], None, "strict", 2.0)
    assert result.groups == expected
    dice = [0.0 if one == "2_0" else 1.0 for one in expected]
    drawn_together = aggregate.summarize(dice, list(expected.values()))
    assert result.table["foreground"]["dice"] == drawn_together
    assert drawn_together.low < aggregate.summarize(dice).low
    doubts = result.uncertainty
    assert doubts.table["foreground"]["max_dice"] == drawn_together
    assert doubts.dice_of_first["foreground"] == [drawn_together] * 2
    scoring.write_report(result, tmp_path / "report")
    stored = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert stored["groups"] == 3
    with (tmp_path / "report" / "per_case.csv").open(newline="") as file:
        assert {row["case"]: row["group"] for row in csv.DictReader(file)} == expected
    assert "12 in 3 groups" in (tmp_path / "report" / "report.html").read_text()


def test_the_report_of_the_data_counts_patients(root):
    catalogue = Builder.catalogue(root, "", 0.2)
    fact = Facts((16, 16), (16, 16), (), 1, "uint8", ({0: 10, 255: 6},), (False,))
    line = survey(catalogue, [fact] * len(catalogue.cases)).report.splitlines()[0]
    counts = {split: len(cases) for split, cases in catalogue.splits.items()}
    assert line == (
        f"  cases   train {counts['train']} in 7 groups, validation {counts['validation']} "
        f"in 2 groups, test {counts['test']} in 1 group"
    )


def test_equal_cases_of_a_group_count_once():
    means = [0.3, 0.9, 0.5, 0.6, 0.1]
    once = aggregate.summarize(means)
    thrice = aggregate.summarize(means * 3, [*"abcde"] * 3)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    assert thrice.n_valid == 15 and thrice.mean == pytest.approx(once.mean)
    alone = aggregate.summarize(means * 3)
    assert alone.high - alone.low < 0.7 * (thrice.high - thrice.low)


def test_large_groups_count_for_more():
    """Of three groups all 27 draws, each likelier than the 2.5% beyond the interval."""
    groups = {"a": [0.0], "b": [1.0, 1.0, 1.0, 1.0], "c": [0.2, 0.4]}
    draws = [
        np.mean(np.concatenate([groups[one] for one in drawn]))
        for drawn in itertools.product(groups, repeat=3)
    ]
    values = [value for group in groups.values() for value in group]
    labels = [name for name, group in groups.items() for _ in group]
    found = aggregate.summarize(values, labels)
    assert (found.low, found.high) == pytest.approx((min(draws), max(draws)))
    assert found.mean == pytest.approx(np.mean(values))
    with_one_undefined = aggregate.summarize([*values, float("nan")], [*labels, "d"])
    assert (with_one_undefined.low, with_one_undefined.high) == (found.low, found.high)
    one_group = aggregate.summarize([0.2, 0.4], ["c", "c"])
    assert np.isnan([one_group.low, one_group.high]).all() and one_group.sd > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,group\na,p1\n", "has no line for case b and 1 more"),
        ("name,group\na,p1\nb,\nc,p2\n", "line 3: no name or no group"),
        ("name,group\na,p1\nb\nc,p2\n", "line 3: no name or no group"),
        ("name,group\n\n\na,p1\n,p2\n", "line 5: no name or no group"),
        ("a,p1\nb,p1\nc,p2\n", "line 2: no name or no group (line 1 is name,group)"),
        ("name,group\na,p1\nb,p1\nc,p2\na,p2\n", "has case a twice"),
        (b"name,group\na,\xff\xfe\n", "cannot be read as CSV in UTF-8"),
        ("", "has no line for case a and 2 more"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(tmp_path, content, message):
    path = tmp_path / "groups.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_groups([tmp_path], ["a", "b", "c"])
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_more_cases_other_columns_and_the_marks_of_excel_are_allowed(tmp_path):
    (tmp_path / "groups.csv").write_bytes(
        b"\xef\xbb\xbfgroup,age,name\r\np1,70, a\r\np1,70,b\r\np2,33,other\r\n"
    )
    assert read_groups([tmp_path], ["a", "b"]) == {"a": "p1", "b": "p1", "other": "p2"}
    assert read_groups([tmp_path / "elsewhere"], ["a"]) == {}
