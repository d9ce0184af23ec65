"""AMOS 2022 from its official layout to batches."""

import shutil

import numpy as np
import pytest

from configs import amos2022
from data.amos2022 import Builder
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError
from tests.layouts import ABDOMEN_LAYOUTS, blocks, case_ids, check_refused, load, remove, save_nifti

TRAINING = (1, 4, 5, 402, 500, 501, 507, 600)  # up to 500 they are CT
VALIDATION = (8, 13, 508)
CT, MR = (1, 4, 5, 402, 500), (501, 507, 600)
# As in the official dataset.json, but for the two that are misspelt there.
ORGANS = {
    1: "spleen",
    2: "right kidney",
    3: "left kidney",
    4: "gallbladder",
    5: "esophagus",
    6: "liver",
    7: "stomach",
    8: "aorta",
    9: "inferior vena cava",
    10: "pancreas",
    11: "right adrenal gland",
    12: "left adrenal gland",
    13: "duodenum",
    14: "bladder",
    15: "prostate or uterus",
}


def save(path, pictures, dtype, layout=0):
    """`layout` counts through ABDOMEN_LAYOUTS; all volumes are spaced alike."""
    layout = ABDOMEN_LAYOUTS[layout % 4]
    save_nifti(path, pictures, dtype, layout, (0.7, 0.7, 5.0), (-120, -80, 1000))


# From below: empty, every organ in a block of its own (block 0 is background), one organ.
LABELS = [
    blocks([0] * 16),
    blocks(range(16)),
    blocks([6] * 4 + [0] * 12),
]
HU = [-1000, -160, -60, 40, 140, 240, 700] + [40] * 9


def name(number):
    return f"amos_{number:04d}"


@pytest.fixture
def root(tmp_path):
    """Eight training and three validation scans, an unlabelled test scan, and other files."""
    folder = tmp_path / "input" / "amos22"
    for split, numbers in (("Tr", TRAINING), ("Va", VALIDATION)):
        for number in numbers:
            scale = 1 if number <= 500 else 1 + number % 7  # MR units mean nothing
            offset = 0 if number <= 500 else 1100  # and there are no negative ones
            image = [blocks([scale * (value + offset) for value in HU])] * len(LABELS)
            file = f"{name(number)}.nii.gz"
            save(folder / f"images{split}" / file, image, np.int16, number)
            save(folder / f"labels{split}" / file, LABELS, np.uint8, number)
    save(folder / "imagesTs" / "amos_0002.nii.gz", LABELS, np.int16)
    for extra in ("imagesTr/._amos_0001.nii.gz", "labelsTr/.DS_Store", "dataset.json", "readme.md"):
        (folder / extra).write_bytes(b"\0")
    return tmp_path / "input"


def catalogue(path, variant="ct", fraction=0.25):
    return Builder.catalogue(path, variant, fraction)


MEMBERS = {"ct": (CT, (8, 13)), "mr": (MR, (508,)), "ct+mr": (CT + MR, VALIDATION)}


@pytest.mark.parametrize("variant", MEMBERS)
def test_the_number_tells_ct_from_mr_and_validation_is_the_test_split(root, variant):
    training, test = MEMBERS[variant]
    splits = case_ids(catalogue(root, variant))
    assert splits["test"] == [name(number) for number in test]
    assert sorted(splits["train"] + splits["validation"]) == [name(number) for number in training]
    assert len(splits["validation"]) == round(len(training) / 4)
    assert not case_ids(catalogue(root, variant, 0.0))["validation"]


def test_training_scans_for_validation_follow_from_their_names(root):
    # Pinned: a number from another version must not be of other patients.
    assert case_ids(catalogue(root, "ct+mr"))["validation"] == ["amos_0402", "amos_0501"]


def test_classes_have_the_official_values(root):
    task = catalogue(root).task
    assert dict(zip(task.label_values, task.classes, strict=True)) == ORGANS
    assert task.exclusive and task.image_channels == 1


def test_every_official_way_to_unpack_is_found(root):
    expected = case_ids(catalogue(root))
    assert case_ids(catalogue(root / "amos22")) == expected
    shutil.move(root / "amos22", root / "moved")
    shutil.move(root / "moved", root / "amos22" / "amos22")
    assert case_ids(catalogue(root)) == expected


@pytest.mark.parametrize("variant", ["", "mr"])
def test_every_organ_reaches_its_channel(root, variant):
    dataset = load(amos2022, root, variant)
    assert dataset.task.classes == tuple(ORGANS.values())
    for split in ("train", "validation", "test"):
        for batch in input_pipeline.eval_batches(dataset, split, batch_size=3):
            assert [one[-5:] for one in batch["id"]] == ["/0000", "/0001", "/0002"]
            for mask, labels in zip(batch["mask"], LABELS, strict=True):
                assert mask.shape == (16, 16, 16)  # the background is channel 0
                np.testing.assert_array_equal(mask.argmax(axis=-1), labels, str(batch["id"]))
    for example in dataset.sources["test"]:
        labels = LABELS[int(example["slice"])]
        np.testing.assert_array_equal(example["labels"], labels[None])
        assert example["depth"] == len(LABELS)


def centres(image):
    """Pixels within the blocks; those beside their edges are blends."""
    return image[1::4, 1::4].ravel()


def test_ct_is_cut_to_the_soft_tissue_window(root):
    dataset = load(amos2022, root)
    assert dataset.task.modalities[0].window == (-160, 240)
    for batch in input_pipeline.eval_batches(dataset, "train", batch_size=3):
        wanted = [-1, -1, -0.5, 0, 0.5, 1, 1] + [0] * 9
        np.testing.assert_allclose(centres(batch["image"][0, ..., 0]), wanted, atol=1e-4)


@pytest.mark.parametrize("variant", ["mr", "ct+mr"])
def test_without_window_every_volume_has_its_own_range(root, variant):
    dataset = load(amos2022, root, variant)
    (modality,) = dataset.task.modalities
    assert modality.window is None and modality.name == {"mr": "MR"}.get(variant, "CT or MR")
    for batch in input_pipeline.eval_batches(dataset, "train", batch_size=3):
        wanted = [2 * (value + 1000) / 1700 - 1 for value in HU]
        np.testing.assert_allclose(centres(batch["image"][0, ..., 0]), wanted, atol=1e-4)


def only(keep, folder):
    """Damage: no other scans than these are left in images and labels."""

    def damage(root):
        for path in root.glob(f"amos22/*{folder}/amos_*"):
            if int(path.name[5:9]) not in keep:
                path.unlink()

    return damage


def copy(source, target):
    return lambda root: shutil.copytree(root / source, root / target, dirs_exist_ok=True)


def validation_in_training(root):
    copy("amos22/imagesVa", "amos22/imagesTr")(root)
    copy("amos22/labelsVa", "amos22/labelsTr")(root)


def strange_label(root):
    labels = [blocks([0] * 15 + [16])] * 3
    save(root / "amos22/labelsTr/amos_0402.nii.gz", labels, np.uint8, 402)


def other_voxels(root):
    save(root / "amos22/labelsTr/amos_0402.nii.gz", LABELS, np.uint8, 403)


REFUSED = {
    "no training set": (remove("amos22/imagesTr"), "{root}: has no folder amos22/imagesTr/"),
    "no validation set": (remove("amos22/imagesVa"), "{root}/amos22/imagesVa: no such folder"),
    "no labels": (remove("amos22/labelsVa"), "{root}/amos22/labelsVa: no such folder"),
    "no CT": (only(MR, "Tr"), "{root}/amos22/imagesTr: no CT scan"),
    "image without mask": (
        remove("amos22/labelsTr/amos_0004.nii.gz"),
        "image without mask: {root}/amos22/imagesTr/amos_0004.nii.gz",
    ),
    "mask without image": (
        remove("amos22/imagesVa/amos_0008.nii.gz"),
        "mask without image: {root}/amos22/labelsVa/amos_0008.nii.gz",
    ),
    "leak": (validation_in_training, "one case in two splits: {root}/amos22/imagesTr/amos_0008"),
    "label 16": (strange_label, "{root}/amos22/labelsTr/amos_0402.nii.gz: holds labels [16]"),
    "voxels": (other_voxels, "amos_0402.nii.gz: has other voxels than {root}/amos22/imagesTr/"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(root, case):
    check_refused(root, *REFUSED[case], lambda path: load(amos2022, path))


def test_a_mirrored_abdomen_is_no_abdomen():
    assert not amos2022.get_config().data.augment.flip


def test_path_and_variant_are_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"data\.path: .*zenodo"):
        load(amos2022, tmp_path / "absent")
    tmp_path.joinpath("here").mkdir()
    with pytest.raises(InputError, match=r"data\.variant: 'pet' is not one of 'ct', 'mr'"):
        load(amos2022, tmp_path / "here", "pet")
