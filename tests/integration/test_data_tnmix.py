"""TNMIX: both sources, their shares of every split, and what is refused."""

import shutil

import numpy as np
import pytest

from configs import tnmix
from data.tnmix import Builder
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError
from tests.layouts import SIDE, case_ids, check_refused, load, painted, remove, save_image

SIZES = ((32, 48), (64, 32), (48, 80))  # multiples of SIDE
TNSCUI, DDTI = "TNSCUI2020_train", "DDTI/1_or_data"
COUNTS = {TNSCUI: 20, DDTI: 10}


def box(index):
    """First and last + 1 row and column of the nodule, in cells of a SIDE x SIDE grid."""
    return 2, 5 + index % 7, 3, 12


def nodule(index, size=(SIDE, SIDE), value=1):
    return painted(size, 0, (box(index), value))


def write(root, source, name, index, one_bit=False):
    """An ultrasound image and its mask."""
    size = SIZES[index % len(SIZES)]
    image = np.random.default_rng(index).integers(0, 256, size, dtype=np.uint8)
    mask = nodule(index, size, 255)
    save_image(root / source / "image" / name, image)
    save_image(root / source / "mask" / name, mask > 0 if one_bit else mask)


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """Both sources with their tables and leftovers; not to be changed."""
    root = tmp_path_factory.mktemp("tnmix")
    for index in range(COUNTS[TNSCUI]):
        write(root, TNSCUI, f"{index + 1:05d}.png", index)
    for index in range(COUNTS[DDTI]):
        write(root, DDTI, f"{index:04d}.PNG", index, one_bit=index % 2 == 1)
    (root / TNSCUI / "train.csv").write_text("ID,CATE\n00001.png,0\n")
    (root / DDTI / "category.csv").write_text("ID,CATE\n0000.PNG,1\n")
    (root / DDTI / "image" / "._0000.PNG").write_bytes(b"no picture")
    (root / "DDTI" / "2_preprocessed_data" / "stage1" / "p_image").mkdir(parents=True)
    return root


@pytest.fixture
def root(official, tmp_path):
    """A copy to damage."""
    return shutil.copytree(official, tmp_path / "data")


def splits(root, fraction=0.25):
    """Split -> case ids."""
    return case_ids(Builder.catalogue(root, "", fraction))


EXPECTED = {f"tnscui_{i + 1:05d}" for i in range(20)} | {f"ddti_{i:04d}" for i in range(10)}


def test_a_fifth_of_each_source_is_for_testing(official):
    found = splits(official)
    counts = {
        split: [sum(case.startswith(source) for case in cases) for source in ("tnscui_", "ddti_")]
        for split, cases in found.items()
    }
    assert counts == {"train": [12, 6], "validation": [4, 2], "test": [4, 2]}
    assert sorted(sum(found.values(), [])) == sorted(EXPECTED)
    assert all(cases == sorted(cases) for cases in found.values())
    assert found["test"][:2] != ["ddti_0000", "ddti_0001"]


def test_the_test_set_does_not_depend_on_the_validation_share(official):
    assert splits(official, 0.0)["test"] == splits(official, 0.5)["test"]
    assert splits(official, 0.0)["validation"] == []


def test_files_and_labels(official):
    catalogue = Builder.catalogue(official, "", 0.25)
    assert catalogue.raters == ("",) and catalogue.task.image_channels == 1
    cases = {case.id: case for case in catalogue.cases}
    case = cases["ddti_0003"]
    assert case.images == (official / DDTI / "image" / "0003.PNG",)
    ((mask,),) = case.raters
    assert mask.path == official / DDTI / "mask" / "0003.PNG"
    assert mask.values == {0: 0, 1: 1, 255: 1}
    assert cases["tnscui_00020"].images == (official / TNSCUI / "image" / "00020.png",)
    assert "tnscui 20 images" in catalogue.notes and "ddti 10 images" in catalogue.notes


def test_where_the_folders_may_lie(root):
    expected = splits(root)
    (root / TNSCUI).rename(root / "moving")
    (root / "TNSCUI2020" / TNSCUI).mkdir(parents=True)
    (root / "moving").rename(root / "TNSCUI2020" / TNSCUI / TNSCUI)
    (root / DDTI).rename(root / "1_or_data")
    shutil.rmtree(root / "DDTI")
    assert splits(root) == expected


def both(root):
    remove(TNSCUI)(root)
    remove("DDTI")(root)


REFUSED = {
    "no TN-SCUI": (remove(TNSCUI), "{root}: has no folder TNSCUI2020_train/; TNMIX"),
    "no DDTI": (remove("DDTI"), "{root}: has no folder DDTI/1_or_data/; TNMIX"),
    "neither": (both, "{root}: has no folder TNSCUI2020_train/ and no DDTI/1_or_data/; TNMIX"),
    "no masks": (remove(f"{TNSCUI}/mask"), f"{{root}}/{TNSCUI}/mask: no such folder"),
    "no mask": (
        remove(f"{TNSCUI}/mask/00007.png"),
        f"image without mask: {{root}}/{TNSCUI}/image/00007.png",
    ),
    "no image": (
        remove(f"{DDTI}/image/0004.PNG"),
        f"mask without image: {{root}}/{DDTI}/mask/0004.PNG",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(root, name):
    check_refused(root, *REFUSED[name], lambda path: Builder.catalogue(path, "", 0.1))


def test_grey_values_in_a_mask_are_refused(root, tmp_path):
    save_image(root / DDTI / "mask" / "0002.PNG", nodule(2, SIZES[2], 200))
    with pytest.raises(InputError) as caught:
        load(tnmix, root, cache=tmp_path / "cache")
    assert "0002.PNG: holds labels [200]" in str(caught.value)


def test_from_files_to_batches(official, tmp_path):
    dataset = load(tnmix, official, cache=tmp_path / "cache")
    assert dataset.task.classes == ("nodule",) and dataset.image_shape == (SIDE, SIDE, 1)
    seen = {}
    for source in dataset.sources.values():
        for example in source:
            seen[example["id"].decode()] = example["labels"]
    assert seen.keys() == EXPECTED
    for case, labels in seen.items():
        index = int(case[-4:]) - case.startswith("tnscui")
        np.testing.assert_array_equal(labels, [nodule(index)])
    (batch,) = input_pipeline.eval_batches(dataset, "test", batch_size=6)
    for case, mask in zip(batch["id"], batch["mask"], strict=True):
        index = int(case[-4:]) - case.startswith("tnscui")
        np.testing.assert_array_equal(mask[..., 0], nodule(index))
