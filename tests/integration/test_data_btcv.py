"""BTCV from its official layout to batches."""

import shutil

import numpy as np
import pytest

from configs import btcv
from data.btcv import Builder
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError
from tests.layouts import ABDOMEN_LAYOUTS, blocks, case_ids, check_refused, load, remove, save_nifti

NUMBERS = (*range(1, 5), *range(21, 27))
CASES = [f"img{number:04d}" for number in NUMBERS]
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
    10: "portal and splenic veins",
    11: "pancreas",
    12: "right adrenal gland",
    13: "left adrenal gland",
}


def save(path, pictures, dtype, layout=("RAS", 1, 1), spacing=(0.7, 0.8, 3.0)):
    save_nifti(path, pictures, dtype, layout, spacing, (-170, -160, 400))


# From below: empty, every organ in a block of its own (0, 14, 15 are background), liver, empty.
LABELS = [
    blocks([0] * 16),
    blocks([*range(14), 0, 0]),
    blocks([6] * 5 + [0] * 11),
    blocks([0] * 16),
]
HU = [-1000, -175, -68.75, 37.5, 143.75, 250, 700] + [37.5] * 9


@pytest.fixture
def root(tmp_path):
    """Ten labelled scans in changing layouts, an unlabelled test scan, and hidden files."""
    folder = tmp_path / "input" / "RawData"
    for index, number in enumerate(NUMBERS):
        how = (ABDOMEN_LAYOUTS[index % 4], (0.7, 0.7, 2.5 + index % 3))
        image, training = [blocks(HU)] * len(LABELS), folder / "Training"
        save(training / "img" / f"img{number:04d}.nii.gz", image, np.float32, *how)
        save(training / "label" / f"label{number:04d}.nii.gz", LABELS, np.uint8, *how)
    save(folder / "Testing" / "img" / "img0061.nii.gz", LABELS, np.int16)
    (folder / "Training" / "img" / "._img0001.nii.gz").write_bytes(b"\0")
    (folder / "Training" / "label" / ".DS_Store").write_bytes(b"\0")
    return tmp_path / "input"


def catalogue(path, variant="13", fraction=0.25):
    return Builder.catalogue(path, variant, fraction)


def test_scans_and_labels_belong_together_by_number(root):
    for case in catalogue(root).cases:
        ((mask,),) = case.raters
        assert case.images[0].name == f"{case.id}.nii.gz"
        assert mask.path.name == f"label{case.id[3:]}.nii.gz"


def test_a_fifth_is_for_testing_whatever_the_rest(root):
    splits = case_ids(catalogue(root))
    assert {split: len(cases) for split, cases in splits.items()} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    assert sorted(sum(splits.values(), [])) == CASES
    # Pinned: a number from another version must not be of other patients.
    assert splits["test"] == ["img0002", "img0024"]
    assert case_ids(catalogue(root, fraction=0.0))["test"] == splits["test"]
    assert not case_ids(catalogue(root, fraction=0.0))["validation"]


def test_every_official_way_to_unpack_is_found(root):
    expected = case_ids(catalogue(root))
    assert case_ids(catalogue(root / "RawData")) == expected
    assert case_ids(catalogue(root / "RawData" / "Training")) == expected
    shutil.move(root / "RawData", root / "Abdomen" / "RawData")
    assert case_ids(catalogue(root)) == expected
    assert case_ids(catalogue(root / "Abdomen")) == expected


def test_thirteen_organs_have_the_official_values(root):
    task = catalogue(root).task
    assert dict(zip(task.label_values, task.classes, strict=True)) == ORGANS
    assert task.exclusive and task.modalities[0].name == "CT"


def test_twelve_organs_have_the_adrenal_glands_merged(root):
    task = catalogue(root, "12").task
    expected = {value: name for value, name in ORGANS.items() if value < 12}
    found = dict(zip(task.label_values, task.classes, strict=True))
    assert found == {**expected, 12: "adrenal glands"}


@pytest.mark.parametrize(("variant", "channels"), [("", 14), ("12", 13)])
def test_every_organ_reaches_its_channel(root, variant, channels):
    dataset = load(btcv, root, variant)
    wanted = [np.minimum(labels, channels - 1) for labels in LABELS]
    for split in ("train", "validation", "test"):
        for batch in input_pipeline.eval_batches(dataset, split, batch_size=4):
            assert [one[-5:] for one in batch["id"]] == ["/0000", "/0001", "/0002", "/0003"]
            for mask, labels in zip(batch["mask"], wanted, strict=True):
                assert mask.shape == (16, 16, channels)  # the background is channel 0
                np.testing.assert_array_equal(mask.argmax(axis=-1), labels, str(batch["id"]))
    for example in dataset.sources["train"]:
        np.testing.assert_array_equal(example["labels"], wanted[int(example["slice"])][None])


def test_intensities_are_cut_to_the_window(root):
    dataset = load(btcv, root)
    assert dataset.task.modalities[0].window == (-175, 250)
    for batch in input_pipeline.eval_batches(dataset, "train", batch_size=4):
        centres = batch["image"][0, 1::4, 1::4, 0].ravel()  # beside edges there are blends
        wanted = [-1, -1, -0.5, 0, 0.5, 1, 1] + [0] * 9
        np.testing.assert_allclose(centres, wanted, atol=1e-4)


def test_odd_sizes_keep_the_areas(root):
    numbers = NUMBERS[:2]
    shutil.rmtree(root / "RawData")
    folder = root / "RawData" / "Training"
    for number, (height, width) in zip(numbers, ((51, 77), (93, 65)), strict=True):
        rows, columns = np.mgrid[:height, :width]
        liver = (rows < 0.5 * height) & (columns < 0.6 * width)
        aorta = (rows >= 0.7 * height) & (columns >= 0.3 * width) & (columns < 0.6 * width)
        labels = [6 * liver + 8 * aorta, np.zeros((height, width)), 8 * aorta]
        save(folder / "img" / f"img{number:04d}.nii.gz", labels, np.int16, ("LPS", 1, 1))
        save(folder / "label" / f"label{number:04d}.nii.gz", labels, np.uint8, ("LPS", 1, 1))
    dataset = load(btcv, root)
    for split in ("train", "test"):
        (first, _, last) = dataset.sources[split]
        shares = [np.mean(first["labels"] == 6), np.mean(first["labels"] == 8)]
        # The border of a region may be off by half a pixel of 16 along each of its sides.
        np.testing.assert_allclose(shares, [0.3, 0.09], atol=0.035)
        assert np.mean(last["labels"] == 6) == 0 and np.mean(last["labels"] == 8) == shares[1]
        assert first["labels"][0, 1, 1] == 6 and first["labels"][0, 14, 7] == 8


def strange_label(root):
    path = root / "RawData/Training/label/label0004.nii.gz"
    save(path, [blocks([0] * 15 + [14])] * 4, np.uint8, ("LPI", 1, 1), (0.7, 0.7, 2.5))


def only_others(root):
    for kind in ("img", "label"):
        for path in (root / "RawData/Training" / kind).glob(f"{kind}*"):
            path.rename(path.with_name(f"DET0000{path.name[-11:]}"))


REFUSED = {
    "no folder": (remove("RawData/Training"), "{root}: has no folder RawData/Training/img/"),
    "no labels": (
        remove("RawData/Training/label"),
        "{root}/RawData/Training/label: no such folder",
    ),
    "no scan": (only_others, "{root}/RawData/Training/img: no scan img0001.nii.gz"),
    "image without mask": (
        remove("RawData/Training/label/label0002.nii.gz"),
        "image without mask: {root}/RawData/Training/img/img0002.nii.gz",
    ),
    "mask without image": (
        remove("RawData/Training/img/img0002.nii.gz"),
        "mask without image: {root}/RawData/Training/label/label0002.nii.gz",
    ),
    "label 14": (strange_label, "label0004.nii.gz: holds labels [14]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(root, case):
    check_refused(root, *REFUSED[case], lambda path: load(btcv, path))


def test_a_mirrored_abdomen_is_no_abdomen():
    assert not btcv.get_config().data.augment.flip


def test_path_and_variant_are_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"data\.path: .*syn3193805"):
        load(btcv, tmp_path / "absent")
    tmp_path.joinpath("here").mkdir()
    with pytest.raises(InputError, match=r"data\.variant: '8' is not one of '13', '12'"):
        load(btcv, tmp_path / "here", "8")
