"""Which files of a Decathlon or nnU-Net folder make which case, by names alone."""

import json
import shutil

import pytest

from data.folder.decathlon import decathlon_catalogue
from tests.layouts import (
    CASES,
    DECATHLON,
    NNUNET,
    case_ids,
    check_refused,
    remove,
    text,
    touch,
    write_json,
)


def change(**fields):
    """Damage: other fields in dataset.json; None removes one."""

    def damage(root):
        about = json.loads((root / "dataset.json").read_text()) | fields
        write_json(root, {key: value for key, value in about.items() if value is not None})

    return damage


@pytest.fixture
def decathlon(tmp_path):
    """Ten cases of two modalities in one file each, an unlabelled test case, macOS debris."""
    root = tmp_path / "decathlon"
    for name in CASES:
        touch(f"imagesTr/{name}.nii.gz", f"labelsTr/{name}.nii.gz")(root)
    touch("imagesTs/case_002.nii.gz")(root)
    touch("imagesTr/._case_001.nii.gz", "labelsTr/._case_001.nii.gz", "._dataset.json")(root)
    write_json(root, DECATHLON)
    return root


@pytest.fixture
def nnunet(tmp_path):
    """The same cases with a file per modality and overlapping regions."""
    root = tmp_path / "nnunet"
    for name in CASES:
        touch(*(f"imagesTr/{name}_{i:04d}.nii.gz" for i in range(2)))(root)
        touch(f"labelsTr/{name}.nii.gz")(root)
    touch("imagesTr/._case_001_0000.nii.gz")(root)
    write_json(root, NNUNET)
    return root


@pytest.fixture(params=["decathlon", "nnunet"])
def root(request):
    """Either of them."""
    return request.getfixturevalue(request.param)


def ids(root, fraction=0.25):
    return case_ids(decathlon_catalogue(root, fraction))


def write_list(root, name, cases):
    (root / name).write_text("\n".join(cases) + "\n")


def add_test_set(root, names, labelled):
    """imagesTs/ and labelsTs/ beside the training cases."""
    endings = ("_0000", "_0001") if root.name == "nnunet" else ("",)
    touch(*(f"imagesTs/{name}{ending}.nii.gz" for name in names for ending in endings))(root)
    touch(*(f"labelsTs/{name}.nii.gz" for name in labelled))(root)


def test_decathlon_files_are_those_of_the_list(decathlon):
    found = decathlon_catalogue(decathlon, 0.1)
    assert sorted(case.id for case in found.cases) == CASES
    for case in found.cases:
        assert case.images == (decathlon / "imagesTr" / f"{case.id}.nii.gz",)
        assert case.raters[0][0].path == decathlon / "labelsTr" / f"{case.id}.nii.gz"
    # Classes by value, not in the order of the file.
    assert found.task.classes == ("core", "oedema", "rim")
    assert found.task.label_values == (1, 2, 3) and found.task.exclusive
    assert [one.name for one in found.task.modalities] == ["FLAIR", "T1w"]
    assert found.raters == ("",)
    assert decathlon / "dataset.json" in found.extra_files
    assert "imagesTs/ is not used: there is no labelsTs/" in found.notes


def test_files_that_the_list_does_not_name_are_reported(decathlon):
    change(training=DECATHLON["training"][:-1])(decathlon)
    found = decathlon_catalogue(decathlon, 0.1)
    assert CASES[0] not in [case.id for case in found.cases]
    assert any("imagesTr/case_001.nii.gz, labelsTr/case_001.nii.gz" in note for note in found.notes)


def test_nnunet_files_are_one_per_channel(nnunet):
    found = decathlon_catalogue(nnunet, 0.1)
    for case in found.cases:
        assert [path.name for path in case.images] == [
            f"{case.id}_0000.nii.gz",
            f"{case.id}_0001.nii.gz",
        ]
        assert case.raters[0][0].path == nnunet / "labelsTr" / f"{case.id}.nii.gz"
    assert sorted(case.id for case in found.cases) == CASES


def test_nnunet_regions_are_bits(nnunet):
    found = decathlon_catalogue(nnunet, 0.1)
    assert found.task.classes == ("whole", "core", "rim")
    assert found.task.label_values == (1, 2, 4) and not found.task.exclusive
    assert found.cases[0].raters[0][0].values == {0: 0, 1: 1 + 2, 2: 1, 3: 1 + 2 + 4}


def test_nnunet_labels_without_regions_stay_exclusive(nnunet):
    change(labels={"background": 0, "rim": 3, "oedema": 2, "core": 1})(nnunet)
    task = decathlon_catalogue(nnunet, 0.1).task
    assert task.classes == ("core", "oedema", "rim") and task.label_values == (1, 2, 3)
    assert task.exclusive


def test_one_class_keeps_its_value(root):
    values = {"0": "background", "7": "lesion"}
    if root.name == "nnunet":
        values = {"background": 0, "lesion": 7}
    change(labels=values)(root)
    task = decathlon_catalogue(root, 0.1).task
    assert task.classes == ("lesion",) and task.label_values == (7,)


def test_the_old_nnunet_has_files_per_channel_under_a_decathlon_list(nnunet):
    fields = {key: value for key, value in DECATHLON.items() if key != "test"}
    write_json(nnunet, fields)
    found = decathlon_catalogue(nnunet, 0.1)
    assert all(len(case.images) == 2 for case in found.cases)
    assert sorted(case.id for case in found.cases) == CASES and found.task.exclusive


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CT", "CT"),
        ("ct", "CT"),
        ("CT (portal venous)", "CT"),
        ("contrast_CT", "CT"),
        ("CTA", "CT"),
        ("CT (no CTA)", "CT"),
        ("non-CT", "non-CT"),
        ("MR (no CT)", "MR (no CT)"),
        ("T1CT1", "T1CT1"),
        ("CTV", "CTV"),
        ("direct", "direct"),
        ("MRI", "MRI"),
    ],
)
def test_ct_is_recognised_as_a_word(root, name, expected):
    key = "channel_names" if root.name == "nnunet" else "modality"
    change(**{key: {"1": "T2", "0": name}})(root)
    assert [one.name for one in decathlon_catalogue(root, 0.1).task.modalities] == [expected, "T2"]


def test_without_lists_eighty_ten_ten(root):
    assert len(ids(root, 0.3)["validation"]) == 3
    splits = ids(root, 0.1)
    assert {split: len(cases) for split, cases in splits.items()} == {
        "train": 8,
        "validation": 1,
        "test": 1,
    }
    assert sorted(sum(splits.values(), [])) == CASES
    assert splits["train"] == sorted(splits["train"])


def test_lists_decide_where_they_are(root):
    write_list(root, "test.txt", [CASES[5], CASES[0]])
    splits = ids(root)
    assert splits["test"] == [CASES[5], CASES[0]]  # the order of the list
    assert len(splits["validation"]) == 2 and len(splits["train"]) == 6
    write_list(root, "train.txt", CASES[1:4])
    write_list(root, "validation.txt", CASES[6:7])
    found = decathlon_catalogue(root, 0.25)
    assert ids(root) == {
        "train": CASES[1:4],
        "validation": CASES[6:7],
        "test": [CASES[5], CASES[0]],
    }
    assert any(note.startswith("4 volumes in no split: case_007") for note in found.notes)
    assert {path.name for path in found.extra_files} == {
        "dataset.json",
        "test.txt",
        "train.txt",
        "validation.txt",
    }


def test_labelled_test_images_are_the_test_split(root):
    add_test_set(root, ["case_100", "case_101", "case_102"], ["case_100", "case_102"])
    (root / "imagesTs" / "case_002.nii.gz").unlink(missing_ok=True)
    splits = ids(root)
    assert splits["test"] == ["case_100", "case_102"]
    assert sorted(splits["train"] + splits["validation"]) == CASES
    assert len(splits["validation"]) == 2  # the fraction, since the test split is given
    notes = decathlon_catalogue(root, 0.25).notes
    assert "1 volumes of imagesTs/ have no labels: case_101" in notes


def test_a_test_list_replaces_the_labelled_test_images(root):
    add_test_set(root, ["case_100", "case_101"], ["case_100", "case_101"])
    write_list(root, "test.txt", ["case_101", CASES[2]])
    splits = ids(root)
    assert splits["test"] == ["case_101", CASES[2]]
    # Held-out images are not trained on because the list leaves them out.
    assert "case_100" not in sum(splits.values(), [])
    assert sorted(splits["train"] + splits["validation"]) == CASES[:2] + CASES[3:]


def same_case_twice(root):
    add_test_set(root, [CASES[0]], [CASES[0]])


def only_test_labels(root):
    shutil.rmtree(root / "imagesTs", ignore_errors=True)
    (root / "labelsTs").mkdir()


def entry(image, label="./labelsTr/case_001.nii.gz"):
    return {"image": image, "label": label}


BOTH = {
    "no json": (remove("dataset.json"), "{root}: has imagesTr/ but no dataset.json"),
    "broken json": (text("dataset.json", '{"labels": '), "dataset.json: cannot be read as JSON"),
    "json list": (text("dataset.json", "[]"), "{root}/dataset.json: is no JSON object"),
    "no labels": (change(labels=None), '{root}/dataset.json: needs {{"labels"'),
    "background": (change(labels={"background": 0}), "dataset.json: has a label without value, or"),
    "ignore": (
        change(labels={"background": 0, "a": 1, "ignore": 2}),
        "{root}/dataset.json: its label 'ignore' marks voxels to leave out",
    ),
    "ignore of the Decathlon": (
        change(labels={"0": "background", "1": "a", "2": "Ignore"}),
        "{root}/dataset.json: its label 'Ignore' marks voxels to leave out",
    ),
    "same value": (
        change(labels={"background": 0, "a": 1, "b": 1}),
        "{root}/dataset.json: label values must be different",
    ),
    "same name": (
        change(labels={"0": "background", "1": "a", "2": "a"}),
        "{root}/dataset.json: two labels are called 'a'",
    ),
    "fraction": (
        change(labels={"background": 0, "a": 1.5}),
        "dataset.json: label 'a' needs an integer",
    ),
    "negative": (
        change(labels={"background": 0, "a": -1}),
        "labels besides the background must be in 1..65535",
    ),
    "empty region": (change(labels={"background": 0, "a": []}), "has a label without value"),
    "region of background": (
        change(labels={"background": 0, "a": [0, 1]}),
        "labels besides the background must be in 1..65535",
    ),
    "regions": (
        change(labels={"background": 0} | {f"r{i}": [1, 2 + i] for i in range(17)}),
        "{root}/dataset.json: 17 regions; at most 16 can be",
    ),
    "ending": (change(file_ending=".png"), "{root}/dataset.json: file_ending '.png'"),
    "images": (remove("labelsTr"), "labelsTr"),
    "list": (text("val.txt", "case_999\n"), "{root}/val.txt: no image in imagesTr/ or"),
    "no test images": (only_test_labels, "{root}/imagesTs: no such folder"),
    "test label alone": (
        touch("labelsTs/case_200.nii.gz", "imagesTs/.DS_Store"),
        "mask without image: {root}/labelsTs/case_200.nii.gz",
    ),
    "in both": (same_case_twice, "{root}: imagesTr/ and imagesTs/ both have case_001"),
}
DECATHLON_ONLY = {
    "missing image": (
        remove("imagesTr/case_004.nii.gz"),
        "{root}/dataset.json: lists files that do not exist: {root}/imagesTr/case_004.nii.gz",
    ),
    "missing label": (
        remove("labelsTr/case_004.nii.gz"),
        "{root}/dataset.json: lists files that do not exist: {root}/labelsTr/case_004.nii.gz",
    ),
    "listed twice": (
        change(training=[*DECATHLON["training"], entry("imagesTr/case_001.nii.gz")]),
        "{root}/dataset.json: lists case_001 twice",
    ),
    "no list": (change(training=None), '{root}/dataset.json: needs {{"training"'),
    "odd list": (change(training=["case_001"]), '{root}/dataset.json: needs {{"training"'),
    "empty list": (change(training=[]), "{root}/imagesTr: no volume"),
    "other format": (
        change(training=[entry("./dataset.json")]),
        "{root}/dataset.json: is not NIfTI",
    ),
    "gap": (change(modality={"0": "a", "2": "b"}), '{root}/dataset.json: needs {{"channel_names"'),
    "no modality": (change(modality=None), '{root}/dataset.json: needs {{"channel_names"'),
}
NNUNET_ONLY = {
    "missing channel": (
        remove("imagesTr/case_004_0001.nii.gz"),
        "{root}/imagesTr: has no case_004_0001.nii.gz",
    ),
    "third channel": (
        touch("imagesTr/case_004_0002.nii.gz"),
        "{root}/imagesTr/case_004_0002.nii.gz: dataset.json names 2 channels",
    ),
    "no channel": (
        touch("imagesTr/case_004.nii.gz"),
        "{root}/imagesTr/case_004.nii.gz: its name does not end in the number of a channel",
    ),
    "image without mask": (
        remove("labelsTr/case_004.nii.gz"),
        "image without mask: {root}/imagesTr/case_004_0000.nii.gz",
    ),
    "mask without image": (
        touch("labelsTr/case_005.nii.gz"),
        "mask without image: {root}/labelsTr/case_005.nii.gz",
    ),
}


def catalogue(root):
    return decathlon_catalogue(root, 0.1)


@pytest.mark.parametrize("name", BOTH)
def test_what_cannot_be_right_is_refused_by_name(root, name):
    check_refused(root, *BOTH[name], catalogue)


@pytest.mark.parametrize("name", DECATHLON_ONLY)
def test_what_a_decathlon_folder_must_have(decathlon, name):
    check_refused(decathlon, *DECATHLON_ONLY[name], catalogue)


@pytest.mark.parametrize("name", NNUNET_ONLY)
def test_what_an_nnunet_folder_must_have(nnunet, name):
    check_refused(nnunet, *NNUNET_ONLY[name], catalogue)
