"""BTCV from its official layout to batches."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from configs import btcv
from data.btcv import Builder
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError

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


def picture(values):
    """16 x 16 pixels in 4 x 4 blocks of these 16 values."""
    return np.kron(np.reshape(values, (4, 4)), np.ones((4, 4), int))


def save(path, slices, dtype, codes="RAS", spacing=(0.7, 0.8, 3.0)):
    """Axial pictures (front at the top, patient's right at the left) as NIfTI in this layout."""
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -170, -160, 400
    voxels = np.flip(np.stack(slices), (1, 2)).transpose(2, 1, 0).astype(dtype)
    target = orientations.axcodes2ornt(codes)
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), target)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine).as_reoriented(turn), path)


# From below: empty, every organ in a block of its own (0, 14, 15 are background), liver, empty.
LABELS = [
    picture([0] * 16),
    picture([*range(14), 0, 0]),
    picture([6] * 5 + [0] * 11),
    picture([0] * 16),
]
HU = [-1000, -175, -68.75, 37.5, 143.75, 250, 700] + [37.5] * 9


@pytest.fixture
def root(tmp_path):
    """Ten labelled scans in changing layouts, an unlabelled test scan, and hidden files."""
    folder = tmp_path / "input" / "RawData"
    layouts = (("LAS", 2, 3), ("RPS", 1, 2), ("SLP", 3, 1), ("LPI", 1, 1))
    for index, number in enumerate(NUMBERS):
        codes, rows, columns = layouts[index % 4]
        block = np.ones((rows, columns), int)
        spacing = (0.7 / columns, 0.7 / rows, 2.5 + index % 3)
        image = [np.kron(picture(HU), block)] * len(LABELS)
        labels = [np.kron(one, block) for one in LABELS]
        training = folder / "Training"
        save(training / "img" / f"img{number:04d}.nii.gz", image, np.float32, codes, spacing)
        save(training / "label" / f"label{number:04d}.nii.gz", labels, np.uint8, codes, spacing)
    save(folder / "Testing" / "img" / "img0061.nii.gz", LABELS, np.int16)
    (folder / "Training" / "img" / "._img0001.nii.gz").write_bytes(b"\0")
    (folder / "Training" / "label" / ".DS_Store").write_bytes(b"\0")
    return tmp_path / "input"


def catalogue(path, variant="13", fraction=0.25):
    return Builder.catalogue(path, variant, fraction)


def ids(found):
    return {split: [case.id for case in cases] for split, cases in found.splits.items()}


def load(root, variant=""):
    data = btcv.get_config("default,tiny").data
    data.path, data.image_size, data.variant = str(root), 16, variant
    data.cache_dir = str(root.parent / "cache")
    return input_pipeline.load(data)


def test_scans_and_labels_belong_together_by_number(root):
    for case in catalogue(root).cases:
        ((mask,),) = case.raters
        assert case.images[0].name == f"{case.id}.nii.gz"
        assert mask.path.name == f"label{case.id[3:]}.nii.gz"


def test_a_fifth_is_for_testing_whatever_the_rest(root):
    splits = ids(catalogue(root))
    assert {split: len(cases) for split, cases in splits.items()} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    assert sorted(sum(splits.values(), [])) == CASES
    # Pinned: a number from another version must not be of other patients.
    assert splits["test"] == ["img0002", "img0024"]
    assert ids(catalogue(root, fraction=0.0))["test"] == splits["test"]
    assert not ids(catalogue(root, fraction=0.0))["validation"]


def test_every_official_way_to_unpack_is_found(root):
    expected = ids(catalogue(root))
    assert ids(catalogue(root / "RawData")) == expected
    assert ids(catalogue(root / "RawData" / "Training")) == expected
    shutil.move(root / "RawData", root / "Abdomen" / "RawData")
    assert ids(catalogue(root)) == expected
    assert ids(catalogue(root / "Abdomen")) == expected


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
    dataset = load(root, variant)
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
    dataset = load(root)
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
        save(folder / "img" / f"img{number:04d}.nii.gz", labels, np.int16, "LPS")
        save(folder / "label" / f"label{number:04d}.nii.gz", labels, np.uint8, "LPS")
    dataset = load(root)
    for split in ("train", "test"):
        (first, _, last) = dataset.sources[split]
        shares = [np.mean(first["labels"] == 6), np.mean(first["labels"] == 8)]
        # The border of a region may be off by half a pixel of 16 along each of its sides.
        np.testing.assert_allclose(shares, [0.3, 0.09], atol=0.035)
        assert np.mean(last["labels"] == 6) == 0 and np.mean(last["labels"] == 8) == shares[1]
        assert first["labels"][0, 1, 1] == 6 and first["labels"][0, 14, 7] == 8


def unlink(path):
    return lambda root: (root / "RawData" / "Training" / path).unlink()


def remove(path):
    return lambda root: shutil.rmtree(root / "RawData" / path)


def strange_label(root):
    path = root / "RawData/Training/label/label0004.nii.gz"
    save(path, [picture([0] * 15 + [14])] * 4, np.uint8, "LPI", (0.7, 0.7, 2.5))


def only_others(root):
    for kind in ("img", "label"):
        for path in (root / "RawData/Training" / kind).glob(f"{kind}*"):
            path.rename(path.with_name(f"DET0000{path.name[-11:]}"))


REFUSED = {
    "no folder": (remove("Training"), "{root}: has no folder RawData/Training/img/"),
    "no labels": (remove("Training/label"), "{root}/RawData/Training/label: no such folder"),
    "no scan": (only_others, "{root}/RawData/Training/img: no scan img0001.nii.gz"),
    "image without mask": (
        unlink("label/label0002.nii.gz"),
        "image without mask: {root}/RawData/Training/img/img0002.nii.gz",
    ),
    "mask without image": (
        unlink("img/img0002.nii.gz"),
        "mask without image: {root}/RawData/Training/label/label0002.nii.gz",
    ),
    "label 14": (strange_label, "label0004.nii.gz: holds labels [14]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(root, case):
    damage, message = REFUSED[case]
    damage(root)
    with pytest.raises(InputError) as caught:
        load(root)
    line = str(caught.value)
    assert message.format(root=root) in line and "\n" not in line


def test_a_mirrored_abdomen_is_no_abdomen():
    assert not btcv.get_config().data.augment.flip


def test_path_and_variant_are_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"data\.path: .*syn3193805"):
        load(tmp_path / "absent")
    tmp_path.joinpath("here").mkdir()
    with pytest.raises(InputError, match=r"data\.variant: '8' is not one of '13', '12'"):
        load(tmp_path / "here", "8")
