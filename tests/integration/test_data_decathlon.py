"""A folder of volumes, as the Decathlon or nnU-Net stores them, to batches."""

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations

from configs import folder as config_folder
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError

CASES = [f"case_{number:03d}" for number in (1, 3, 4, 6, 7, 8, 14, 15, 17, 19)]


def picture(blocks, rest=0):
    """16 x 16 pixels of `rest`, in 4 x 4 blocks of which some (number -> value) differ."""
    values = np.full(16, rest)
    for block, value in blocks.items():
        values[block] = value
    return np.kron(values.reshape(4, 4), np.ones((4, 4), int))


def save(path, modalities, dtype, layout=0):
    """Axial pictures (front at the top, patient's right at the left) as NIfTI, stored in a way
    that depends on `layout`: voxel size, order and direction of the axes.

    Several lists of pictures become a fourth axis.
    """
    codes, rows, columns = (("RAS", 1, 2), ("LPS", 2, 1), ("PIR", 3, 1), ("ASL", 1, 1))[layout % 4]
    block = np.ones((rows, columns), int)
    slices = np.stack([[np.kron(one, block) for one in pictures] for pictures in modalities])
    voxels = np.flip(slices, (2, 3)).transpose(3, 2, 1, 0).astype(dtype)
    affine = np.diag([1 / columns, 1 / rows, 2.0, 1.0])
    image = nib.Nifti1Image(voxels[..., 0] if len(modalities) == 1 else voxels, affine)
    target = orientations.axcodes2ornt(codes)
    turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), target)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)


# From below: empty, three labels, label 2 alone.
LABELS = [picture({}), picture({5: 2, 6: 1, 9: 3}), picture({5: 2, 10: 2})]
IMAGES = [[picture({index: 900}, rest=100)] * len(LABELS) for index in range(2)]

DECATHLON = {
    "name": "Example",
    "modality": {"0": "FLAIR", "1": "T1w"},
    "labels": {"0": "background", "1": "core", "3": "rim", "2": "oedema"},
    "test": [],
    "training": [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
        for name in reversed(CASES)
    ],
}
NNUNET = {
    "channel_names": {"0": "FLAIR", "1": "T1w"},
    "labels": {"background": 0, "whole": [1, 2, 3], "core": [1, 3], "rim": 3},
    "regions_class_order": [2, 1, 3],
    "numTraining": len(CASES),
    "file_ending": ".nii.gz",
}


def write_json(root, fields):
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(fields), encoding="utf-8")


@pytest.fixture
def decathlon(tmp_path):
    """Ten cases of two modalities in one file each, an unlabelled test case, macOS debris."""
    root = tmp_path / "decathlon"
    write_json(root, DECATHLON)
    for index, name in enumerate(CASES):
        save(root / "imagesTr" / f"{name}.nii.gz", IMAGES, np.float32, index)
        save(root / "labelsTr" / f"{name}.nii.gz", [LABELS], np.uint8, index)
    save(root / "imagesTs" / "case_002.nii.gz", IMAGES, np.float32)
    for debris in ("imagesTr/._case_001.nii.gz", "labelsTr/._case_001.nii.gz", "._dataset.json"):
        (root / debris).write_bytes(b"\0")
    return root


@pytest.fixture
def nnunet(tmp_path):
    """The same cases with a file per modality and overlapping regions."""
    root = tmp_path / "nnunet"
    write_json(root, NNUNET)
    for index, name in enumerate(CASES):
        for channel in range(2):
            path = root / "imagesTr" / f"{name}_{channel:04d}.nii.gz"
            save(path, IMAGES[channel : channel + 1], np.int16, index)
        save(root / "labelsTr" / f"{name}.nii.gz", [LABELS], np.uint8, index)
    (root / "imagesTr" / "._case_001_0000.nii.gz").write_bytes(b"\0")
    return root


def load(root):
    data = config_folder.get_config("default,tiny").data
    data.path, data.image_size = str(root), 16
    data.cache_dir = str(root.parent / "cache")
    return input_pipeline.load(data)


def check_batches(dataset, expected, first):
    """`expected`: class -> blocks of every slice; `first`: channel of the first class."""
    for split in ("train", "validation", "test"):
        for batch in input_pipeline.eval_batches(dataset, split, batch_size=3):
            assert [one[-5:] for one in batch["id"]] == ["/0000", "/0001", "/0002"]
            for channel, blocks in enumerate(expected.values(), start=first):
                wanted = [picture(dict.fromkeys(one, 1)) for one in blocks]
                np.testing.assert_array_equal(batch["mask"][..., channel], np.stack(wanted))
            for channel in range(2):
                bright = np.full(16, -1)
                bright[channel] = 1
                # Pixels beside the edges of a block are blends.
                centres = batch["image"][1, 1::4, 1::4, channel].ravel()
                np.testing.assert_allclose(centres, bright, atol=1e-3)


def test_a_decathlon_folder_becomes_batches(decathlon):
    dataset = load(decathlon)
    expected = {
        "core": [{}, {6}, {}],
        "oedema": [{}, {5}, {5, 10}],
        "rim": [{}, {9}, {}],
    }
    assert dataset.task.classes == tuple(expected) and dataset.image_shape == (16, 16, 2)
    check_batches(dataset, expected, first=1)
    assert dataset.sources["train"][1]["labels"].max() == 3


def test_an_nnunet_folder_becomes_batches(nnunet):
    dataset = load(nnunet)
    expected = {
        "whole": [{}, {5, 6, 9}, {5, 10}],
        "core": [{}, {6, 9}, {}],
        "rim": [{}, {9}, {}],
    }
    assert dataset.task.classes == tuple(expected) and dataset.image_shape == (16, 16, 2)
    check_batches(dataset, expected, first=0)
    assert dataset.sources["train"][1]["labels"].max() == 1 + 2 + 4


def ct_folder(root, intensities):
    """Three nnU-Net cases of two slices; these intensities, in HU, are labelled."""
    fields = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}}
    write_json(root, fields)
    labels = [picture(dict.fromkeys(range(len(intensities)), 1))] * 2
    hu = [picture(dict(enumerate(intensities)), rest=-1000)] * 2
    for number in range(3):
        save(root / "imagesTr" / f"a{number}_0000.nii.gz", [hu], np.int16, number)
        save(root / "labelsTr" / f"a{number}.nii.gz", [labels], np.uint8, number)
    return root


def test_ct_gets_one_window_from_the_labelled_voxels(tmp_path):
    dataset = load(ct_folder(tmp_path / "input", (50, 60, 70, 80, 90, 100, 110, 150)))
    assert dataset.task.modalities[0].window == (50, 150)


def test_labelled_voxels_of_one_intensity_make_no_window(tmp_path):
    with pytest.raises(InputError, match=r"input: all labelled voxels have the intensity 3071;"):
        load(ct_folder(tmp_path / "input", (3071,) * 8))


def strange_label(root):
    save(root / "labelsTr" / "case_004.nii.gz", [[picture({3: 4})] * 3], np.uint8, 2)


def one_modality(root):
    save(root / "imagesTr" / "case_004.nii.gz", IMAGES[:1], np.float32, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (strange_label, "{root}/labelsTr/case_004.nii.gz: holds labels [4]"),
        (one_modality, "{root}/imagesTr/case_004.nii.gz: 1 modalities where 2 are expected"),
    ],
)
def test_wrong_content_is_refused_by_name(decathlon, damage, message):
    damage(decathlon)
    with pytest.raises(InputError) as caught:
        load(decathlon)
    line = str(caught.value)
    assert message.format(root=decathlon) in line and "\n" not in line
