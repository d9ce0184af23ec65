"""REFUGE 2 in the folders of its releases, and the seven-rater release."""

import shutil

import numpy as np
import pytest

from configs import refuge2
from data.refuge2 import Builder
from data.refuge2.refuge2_dataset_builder import RATERS
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError
from tests.layouts import SIDE, case_ids, check_refused, load, painted, remove, save_image

SIZES = ((32, 48), (64, 32), (48, 80))  # multiples of SIDE; train and test differ in reality too
STEMS = {
    "train": ("g0001", "g0002", "n0001", "n0002", "n0003", "n0004"),
    "validation": ("V0001", "V0002", "V0003"),
    "test": ("T0001", "T0002"),
}
# Split -> folders of images and of masks; {kind} is the folder of a diagnosis.
RELEASE_2018 = {
    "train": ("Training400/{kind}", "Annotation-Training400/Disc_Cup_Masks/{kind}"),
    "validation": ("REFUGE-Validation400", "REFUGE-Validation400-GT/Disc_Cup_Masks"),
    "test": ("REFUGE-Test400", "REFUGE-Test-GT/Disc_Cup_Masks/{letter}"),
}
RELEASE_2022 = {
    "train": (
        "REFUGE2/Train/REFUGE1-train/Training400/{kind}",
        "REFUGE2/Train/REFUGE1-train/Disc_Cup_Masks/{kind}",
    ),
    "validation": (
        "REFUGE2/Train/REFUGE1-val/REFUGE-Validation400",
        "REFUGE2/Train/REFUGE1-val/Disc_Cup_Masks",
    ),
    "test": (
        "REFUGE2/Train/REFUGE1-test/Test400",
        "REFUGE2/Train/REFUGE1-test/Disc_Cup_Masks",
    ),
}
DISC = (4, 12, 3, 11)  # first and last + 1 row and column, in cells of a SIDE x SIDE grid
CUP = (6, 10, 5, 8)


def grid(box):
    """The box at the size of the examples."""
    return painted((SIDE, SIDE), 0, (box, 1))


def photograph(size):
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def release(root, layout):
    """A small copy of a release."""
    for split, stems in STEMS.items():
        for index, stem in enumerate(stems):
            glaucoma = stem.startswith("g") or stem == "T0001"
            words = {
                "kind": "Glaucoma" if glaucoma else "Non-Glaucoma",
                "letter": "G" if glaucoma else "N",
            }
            images, masks = (root / path.format(**words) for path in layout[split])
            size = SIZES[index % len(SIZES)]
            save_image(images / f"{stem}.jpg", photograph(size))
            save_image(masks / f"{stem}.bmp", painted(size, 255, (DISC, 128), (CUP, 0)))
            (images / "Thumbs.db").write_bytes(b"")
            (masks / f"._{stem}.bmp").write_bytes(b"no picture")
    debris = root / "__MACOSX" / "Training400"
    debris.mkdir(parents=True)
    (debris / "._g0001.jpg").write_bytes(b"no picture")
    return root


@pytest.fixture
def root(tmp_path):
    return release(tmp_path / "data", RELEASE_2018)


def splits(root, variant="refuge2", fraction=0.25):
    """Split -> case ids."""
    return case_ids(Builder.catalogue(root, variant, fraction))


OFFICIAL = {split: list(stems) for split, stems in STEMS.items()}
OFFICIAL["train"].sort()


@pytest.mark.parametrize("layout", [RELEASE_2018, RELEASE_2022], ids=["2018", "2022"])
def test_the_official_splits(tmp_path, layout):
    root = release(tmp_path, layout)
    catalogue = Builder.catalogue(root, "refuge2", 0.1)
    assert splits(root) == OFFICIAL and not catalogue.notes
    case = catalogue.splits["test"][1]
    images, masks = (root / path.format(letter="N") for path in layout["test"])
    assert case.images == (images / "T0002.jpg",)
    ((mask,),) = case.raters
    assert mask.path == masks / "T0002.bmp"
    assert mask.values == {255: 0, 128: 1, 0: 3}


def test_the_release_of_the_second_challenge(tmp_path):
    train, validation, test = "REFUGE1-Train-400", "REFUGE1-Val-400", "REFUGE1-Test-400"
    layout = {
        "train": (
            f"{train}/Images/{{kind}}",
            f"{train}/Annotation-Training400/Disc_Cup_Masks/{{kind}}",
        ),
        "validation": (
            f"{validation}/REFUGE-Validation400",
            f"{validation}/REFUGE-Validation400-GT/Disc_Cup_Masks",
        ),
        "test": (f"{test}/Images", f"{test}/Annotation/Disc_Cup_Masks/{{letter}}"),
    }
    inner = release(tmp_path / "REFUGE2-Training" / "REFUGE2-Training", layout)
    assert splits(tmp_path) == splits(inner) == OFFICIAL


def test_where_the_folders_may_lie(tmp_path):
    root = release(tmp_path, RELEASE_2022)
    assert splits(root / "REFUGE2") == splits(root / "REFUGE2" / "Train") == OFFICIAL


def test_archives_unpacked_into_folders_of_their_own(root):
    for name in ("REFUGE-Validation400", "REFUGE-Validation400-GT", "Annotation-Training400"):
        (root / name).rename(root / "moving")
        (root / name).mkdir()
        (root / "moving").rename(root / name / name)
    (root / "REFUGE-Training400").mkdir()
    (root / "Training400").rename(root / "REFUGE-Training400" / "Training400")
    assert splits(root) == OFFICIAL


def test_without_validation_and_test_folders(root):
    shutil.rmtree(root / "REFUGE-Validation400-GT")
    shutil.rmtree(root / "REFUGE-Test400")
    found = splits(root, fraction=0.34)
    assert len(found["validation"]) == 2 and found["test"] == []
    assert sorted(found["train"] + found["validation"]) == OFFICIAL["train"]
    validation, test = Builder.catalogue(root, "refuge2", 0.34).notes
    assert "REFUGE-Validation400-GT" in validation and "taken from the training set" in validation
    assert "REFUGE-Test-GT" in test and "the test set is empty" in test


def rated_shapes(rater):
    """Disc and cup of a rater (from 0): the larger the number, the smaller both."""
    return (4, 12, 3, 11 - rater % 4), (6, 10, 5, 8 - rater % 2)


@pytest.fixture
def rated(tmp_path):
    """The seven-rater release: six cases for training, two for testing."""
    root = tmp_path / "rated"
    cases = {"Training-400": ("0001", "0002", "0311", "0499", "0826", "1100")}
    cases["Test-400"] = ("0003", "0900")
    for folder, names in cases.items():
        for index, name in enumerate(names):
            size = SIZES[index % len(SIZES)]
            case = root / folder / name
            save_image(case / f"{name}.jpg", photograph(size))
            for rater in range(7):
                # Both conventions of a foreground: 255 as published, 1 as after some tools.
                value = 1 if rater == 6 else 255
                for kind, box in zip(("disc", "cup"), rated_shapes(rater), strict=True):
                    labels = painted(size, 0, (box, value))
                    save_image(case / f"{name}_seg_{kind}_{rater + 1}.png", labels)
            (case / ".DS_Store").write_bytes(b"\0")
        (root / folder / ".ipynb_checkpoints").mkdir()
        (root / folder / "__MACOSX").mkdir()
    return root


def test_seven_raters(rated):
    catalogue = Builder.catalogue(rated, "multirater", 0.34)
    assert catalogue.raters == RATERS and len(RATERS) == 7
    found = splits(rated, "multirater", 0.34)
    assert found["test"] == ["0003", "0900"]
    assert len(found["train"]) == 4 and len(found["validation"]) == 2
    case = catalogue.splits["test"][1]
    folder = rated / "Test-400" / "0900"
    assert case.images == (folder / "0900.jpg",) and len(case.raters) == 7
    disc, cup = case.raters[4]
    assert disc.path == folder / "0900_seg_disc_5.png" and disc.values == {0: 0, 1: 1, 255: 1}
    assert cup.path == folder / "0900_seg_cup_5.png" and cup.values == {0: 0, 1: 2, 255: 2}


def test_where_the_raters_folders_may_lie(rated, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    expected = splits(rated, "multirater")
    rated.rename(outer / "REFUGE-Multirater")
    assert splits(outer, "multirater") == expected
    shutil.rmtree(outer / "REFUGE-Multirater" / "Test-400")
    assert splits(outer, "multirater")["test"] == []
    assert Builder.catalogue(outer, "multirater", 0.1).notes


def copied(source, target):
    """Damage: the folder is elsewhere too."""
    return lambda root: shutil.copytree(root / source, root / target)


def same_stem(root):
    shutil.copy(
        root / "Training400/Glaucoma/g0001.jpg", root / "Training400/Non-Glaucoma/g0001.jpg"
    )


REFUSED = {
    "nothing": (remove("Training400"), "{root}: needs one of Training400/ with Annotation-Tr"),
    "no masks": (remove("Annotation-Training400"), "{root}: needs one of Training400/ with Anno"),
    "no mask": (
        remove("REFUGE-Test-GT/Disc_Cup_Masks/N/T0002.bmp"),
        "image without mask: {root}/REFUGE-Test400/T0002.jpg",
    ),
    "no image": (
        remove("Training400/Glaucoma/g0002.jpg"),
        "without image: {root}/Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0002.bmp",
    ),
    "same stem": (same_stem, "Non-Glaucoma/g0001.jpg: shares a stem with {root}/Training400/G"),
}
REFUSED_RATED = {
    "no training": (remove("Training-400"), "{root}: has no folder Training-400/"),
    "no image": (
        remove("Training-400/0826/0826.jpg"),
        "{root}/Training-400/0826: no file *.jpg",
    ),
    "no rater": (
        remove("Test-400/0003/0003_seg_cup_7.png"),
        "{root}/Test-400/0003: has no 0003_seg_cup_7.png",
    ),
    "two splits": (
        copied("Training-400/0001", "Test-400/0001"),
        "two splits: {root}/Training-400/0001/0001.jpg and {root}/Test-400/0001/0001.jpg",
    ),
    "other name": (
        lambda root: (root / "Test-400/0003").rename(root / "Test-400/0004"),
        "{root}/Test-400/0004: has no 0004.jpg",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(root, name):
    check_refused(root, *REFUSED[name], lambda path: Builder.catalogue(path, "refuge2", 0.1))


@pytest.mark.parametrize("name", REFUSED_RATED)
def test_what_cannot_be_right_of_raters_is_refused_by_name(rated, name):
    check_refused(
        rated, *REFUSED_RATED[name], lambda path: Builder.catalogue(path, "multirater", 0.1)
    )


def test_from_files_to_batches(root):
    dataset = load(refuge2, root, "")  # the first variant
    assert dataset.task.classes == ("disc", "cup") and not dataset.task.exclusive
    assert dataset.image_shape == (SIDE, SIDE, 3)
    for stem, example in zip(OFFICIAL["train"], dataset.sources["train"], strict=True):
        assert example["id"].decode() == stem
        np.testing.assert_array_equal(example["labels"], [grid(DISC) + 2 * grid(CUP)])
    (batch,) = input_pipeline.eval_batches(dataset, "test", batch_size=2)
    for mask in batch["mask"]:  # the disc contains the cup
        np.testing.assert_array_equal(mask, np.stack([grid(DISC), grid(CUP)], axis=-1))


def test_unknown_labels_are_refused(root):
    path = root / "REFUGE-Validation400-GT" / "Disc_Cup_Masks" / "V0001.bmp"
    save_image(path, painted(SIZES[0], 255, (DISC, 127)))
    with pytest.raises(InputError) as caught:
        load(refuge2, root, "refuge2")
    assert "V0001.bmp: holds labels [127]" in str(caught.value)


def test_from_raters_to_batches(rated):
    dataset = load(refuge2, rated, "multirater")
    example = dataset.sources["test"][0]
    assert example["labels"].shape == (7, SIDE, SIDE)
    for rater, labels in enumerate(example["labels"]):
        disc, cup = map(grid, rated_shapes(rater))
        np.testing.assert_array_equal(labels, disc + 2 * cup)
    (batch,) = input_pipeline.eval_batches(dataset, "test", batch_size=2)
    shapes = [list(map(grid, rated_shapes(rater))) for rater in range(7)]
    majority = np.mean(shapes, axis=0) >= 0.5
    np.testing.assert_array_equal(batch["mask"][1], np.moveaxis(majority, 0, -1))
    assert 0 < majority[1].sum() < majority[0].sum() < grid(DISC).sum()
