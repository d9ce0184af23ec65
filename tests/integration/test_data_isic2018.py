"""ISIC 2018 in its official folders: cases, splits, masks, and what is refused."""

import shutil

import numpy as np
import pytest

from configs import isic2018
from data.isic2018 import Builder
from medsegdiff_jax import input_pipeline
from tests.layouts import SIDE, case_ids, check_refused, load, remove, save_image

# Height and width of the pictures; the first three are multiples of SIDE.
SIZES = ((32, 48), (64, 32), (48, 80), (31, 45), (32, 32), (16, 96))
INPUT, TRUTH = "ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth"
SETS = {"Training": range(12), "Validation": range(12, 15), "Test": range(15, 19)}


def stem(number):
    return f"ISIC_{number:07d}"


def box(number):
    """First and last + 1 row and column of the lesion, in cells of a SIDE x SIDE grid."""
    return 2, 5 + number % 7, 3, 12


def lesion(number, size):
    """The lesion of a case in pixels, 0 and 255."""
    labels = np.zeros(size, np.uint8)
    top, bottom, left, right = box(number)
    rows, columns = (np.arange(length) * SIDE / length for length in size)
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))
    labels[inside] = 255
    return labels


def folders(root, official):
    return root / INPUT.format(official), root / TRUTH.format(official)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """All six folders with the other files that come along; not to be changed."""
    root = tmp_path_factory.mktemp("download")
    rng = np.random.default_rng(0)
    for name, numbers in SETS.items():
        inputs, truths = folders(root, name)
        inputs.mkdir()
        truths.mkdir()
        for folder in (inputs, truths):
            (folder / "LICENSE.txt").write_text("CC-0")
            (folder / "ATTRIBUTION.txt").write_text("the archive")
        (inputs / ".DS_Store").write_bytes(b"\0")
        for number in numbers:
            size = SIZES[number % len(SIZES)]
            image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            save_image(inputs / f"{stem(number)}.jpg", image)
            save_image(truths / f"{stem(number)}_segmentation.png", lesion(number, size))
    inputs, truths = folders(root, "Training")
    (inputs / f"._{stem(0)}.jpg").write_bytes(b"no picture")
    save_image(inputs / f"{stem(0)}_superpixels.png", np.zeros((9, 9), np.uint8))
    return root


@pytest.fixture
def root(official, tmp_path):
    """A copy to damage."""
    return shutil.copytree(official, tmp_path / "data")


def splits(root, fraction=0.25):
    """Split -> case ids."""
    return case_ids(Builder.catalogue(root, "", fraction))


def ids(name):
    return [stem(number) for number in SETS[name]]


def test_the_official_splits(official):
    assert splits(official) == {
        "train": ids("Training"),
        "validation": ids("Validation"),
        "test": ids("Test"),
    }
    catalogue = Builder.catalogue(official, "", 0.1)
    assert catalogue.raters == ("",) and not catalogue.notes
    case = catalogue.splits["train"][1]
    inputs, truths = folders(official, "Training")
    assert case.images == (inputs / "ISIC_0000001.jpg",)
    ((mask,),) = case.raters
    assert mask.path == truths / "ISIC_0000001_segmentation.png"
    assert mask.values == {0: 0, 255: 1}


@pytest.mark.parametrize("missing", [0, 1])
def test_without_the_validation_folders_a_share_of_the_training_set(root, missing):
    shutil.rmtree(folders(root, "Validation")[missing])
    found = splits(root)
    assert len(found["validation"]) == 3 and len(found["train"]) == 9
    assert sorted(found["train"] + found["validation"]) == ids("Training")
    assert found["validation"] != ids("Training")[:3]
    assert found["test"] == ids("Test")
    (note,) = Builder.catalogue(root, "", 0.25).notes
    assert "ISIC2018_Task1_Validation_GroundTruth/" in note and "taken from the training" in note
    assert splits(root, fraction=0.0)["validation"] == []


def test_without_the_test_folders_no_test_set(root):
    shutil.rmtree(folders(root, "Test")[1])
    assert splits(root)["test"] == [] and splits(root)["validation"] == ids("Validation")
    assert "the test set is empty" in Builder.catalogue(root, "", 0.1).notes[0]


def test_where_the_folders_may_lie(root, tmp_path):
    expected = splits(root)
    outer = tmp_path / "outer"
    outer.mkdir()
    inner = root.rename(outer / "ISIC2018")
    assert splits(outer) == splits(inner) == expected
    for name in SETS:  # unpacked into folders of their own
        for folder in folders(inner, name):
            deeper = folder / folder.name
            folder.rename(inner / "moving")
            folder.mkdir()
            (inner / "moving").rename(deeper)
    assert splits(outer) == splits(inner) == expected


def test_names_with_capitals(root):
    inputs, truths = folders(root, "Training")
    (inputs / f"{stem(3)}.jpg").rename(inputs / f"{stem(3)}.JPG")
    (truths / f"{stem(3)}_segmentation.png").rename(truths / f"{stem(3)}_Segmentation.PNG")
    assert splits(root)["train"] == ids("Training")


def nothing_unpacked(root):
    for path in folders(root, "Validation")[0].glob("*.jpg"):
        path.unlink()


def in_two_splits(root):
    for source, target in zip(folders(root, "Training"), folders(root, "Test"), strict=True):
        for path in source.glob(f"{stem(5)}*"):
            shutil.copy(path, target)


def grey_edge(root):
    labels = lesion(2, (32, 48))
    labels[0, 0] = 128
    save_image(folders(root, "Training")[1] / f"{stem(2)}_segmentation.png", labels)


REFUSED = {
    "no image": (
        remove(f"{INPUT.format('Test')}/{stem(16)}.jpg"),
        f"mask without image: {{root}}/{TRUTH.format('Test')}/ISIC_0000016_seg",
    ),
    "no mask": (
        remove(f"{TRUTH.format('Training')}/{stem(4)}_segmentation.png"),
        f"without mask: {{root}}/{INPUT.format('Training')}/ISIC_0000004.jpg",
    ),
    "no training": (
        remove(TRUTH.format("Training")),
        f"{{root}}: needs the folders {INPUT.format('Training')}/ and",
    ),
    "empty": (nothing_unpacked, f"{{root}}/{INPUT.format('Validation')}: no file *.jpg"),
    "two splits": (in_two_splits, f"{{root}}/{INPUT.format('Training')}/ISIC_0000005.jpg and"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(root, name):
    check_refused(root, *REFUSED[name], lambda path: Builder.catalogue(path, "", 0.1))


def test_other_labels_than_0_and_255_are_refused(root):
    message = "ISIC_0000002_segmentation.png: holds labels [128]"
    check_refused(root, grey_edge, message, lambda path: load(isic2018, path))


def test_from_files_to_batches(official, tmp_path):
    dataset = load(isic2018, official, cache=tmp_path / "cache")
    assert dataset.task.classes == ("lesion",) and dataset.task.label_values == (1,)
    assert dataset.image_shape == (SIDE, SIDE, 3)
    assert {split: len(source) for split, source in dataset.sources.items()} == {
        "train": 12,
        "validation": 3,
        "test": 4,
    }
    for number, example in enumerate(dataset.sources["train"]):
        assert example["id"].decode() == stem(number)
        assert tuple(example["size"]) == SIZES[number % len(SIZES)]
        assert example["labels"].shape == (1, SIDE, SIDE)
        top, bottom, left, right = box(number)
        area = (bottom - top) * (right - left)
        if 31 in example["size"]:  # cells across the border
            assert abs(int(example["labels"].sum()) - area) <= 12
        else:
            expected = np.zeros((SIDE, SIDE))
            expected[top:bottom, left:right] = 1
            np.testing.assert_array_equal(example["labels"][0], expected)
    (batch,) = input_pipeline.eval_batches(dataset, "test", batch_size=4)
    assert batch["mask"].shape == (4, SIDE, SIDE, 1)
    top, bottom, left, right = box(16)
    assert batch["mask"][1].sum() == (bottom - top) * (right - left)
    assert "1: lesion" in dataset.report
