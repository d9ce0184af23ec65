"""A folder of volumes, as the Decathlon or nnU-Net stores them, to batches."""

import numpy as np
import pytest

from configs import folder as config_folder
from data.folder import Builder
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError
from tests.layouts import (
    CASES,
    DECATHLON,
    HEAD_LAYOUTS,
    NNUNET,
    blocks_at,
    check_refused,
    load,
    save_nifti,
    write_json,
)


def save(path, pictures, dtype, layout=0):
    """`layout` counts through HEAD_LAYOUTS; all volumes are spaced alike."""
    save_nifti(path, pictures, dtype, HEAD_LAYOUTS[layout % 4], (1.0, 1.0, 2.0))


# From below: empty, three labels, label 2 alone.
LABELS = [blocks_at({}), blocks_at({5: 2, 6: 1, 9: 3}), blocks_at({5: 2, 10: 2})]
IMAGES = [[blocks_at({index: 900}, rest=100)] * len(LABELS) for index in range(2)]


@pytest.fixture
def decathlon(tmp_path):
    """Ten cases of two modalities in one file each, an unlabelled test case, macOS debris."""
    root = tmp_path / "decathlon"
    write_json(root, DECATHLON | {"test": []})
    for index, name in enumerate(CASES):
        save(root / "imagesTr" / f"{name}.nii.gz", IMAGES, np.float32, index)
        save(root / "labelsTr" / f"{name}.nii.gz", LABELS, np.uint8, index)
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
            save(path, IMAGES[channel], np.int16, index)
        save(root / "labelsTr" / f"{name}.nii.gz", LABELS, np.uint8, index)
    (root / "imagesTr" / "._case_001_0000.nii.gz").write_bytes(b"\0")
    return root


def check_batches(dataset, expected, first):
    """`expected`: class -> blocks of every slice; `first`: channel of the first class."""
    for split in ("train", "validation", "test"):
        for batch in input_pipeline.eval_batches(dataset, split, batch_size=3):
            assert [one[-5:] for one in batch["id"]] == ["/0000", "/0001", "/0002"]
            for channel, blocks in enumerate(expected.values(), start=first):
                wanted = [blocks_at(dict.fromkeys(one, 1)) for one in blocks]
                np.testing.assert_array_equal(batch["mask"][..., channel], np.stack(wanted))
            for channel in range(2):
                bright = np.full(16, -1)
                bright[channel] = 1
                # Pixels beside the edges of a block are blends.
                centres = batch["image"][1, 1::4, 1::4, channel].ravel()
                np.testing.assert_allclose(centres, bright, atol=1e-3)


def test_a_decathlon_folder_becomes_batches(decathlon):
    dataset = load(config_folder, decathlon)
    expected = {
        "core": [{}, {6}, {}],
        "oedema": [{}, {5}, {5, 10}],
        "rim": [{}, {9}, {}],
    }
    assert dataset.task.classes == tuple(expected) and dataset.image_shape == (16, 16, 2)
    check_batches(dataset, expected, first=1)
    assert dataset.sources["train"][1]["labels"].max() == 3


def test_an_nnunet_folder_becomes_batches(nnunet):
    dataset = load(config_folder, nnunet)
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
    labels = [blocks_at(dict.fromkeys(range(len(intensities)), 1))] * 2
    hu = [blocks_at(dict(enumerate(intensities)), rest=-1000)] * 2
    for number in range(3):
        save(root / "imagesTr" / f"a{number}_0000.nii.gz", hu, np.int16, number)
        save(root / "labelsTr" / f"a{number}.nii.gz", labels, np.uint8, number)
    return root


def test_ct_gets_one_window_from_the_labelled_voxels(tmp_path):
    root = ct_folder(tmp_path / "input", (50, 60, 70, 80, 90, 100, 110, 150))
    dataset = load(config_folder, root)
    assert dataset.task.modalities[0].window == (50, 150)


def test_scans_of_the_test_split_do_not_count_in_the_window(tmp_path):
    root = ct_folder(tmp_path / "input", (50, 60, 70, 80, 90, 100, 110, 150))
    hu = [blocks_at(dict.fromkeys(range(8), 900), rest=-1000)] * 2
    save(root / "imagesTr" / "a1_0000.nii.gz", hu, np.int16, 1)
    (root / "test.txt").write_text("a1\n")
    assert load(config_folder, root).task.modalities[0].window == (50, 150)


def test_a_window_that_is_given_replaces_the_measured_one(tmp_path):
    root = ct_folder(tmp_path / "input", (50, 60, 70, 80, 90, 100, 110, 150))
    assert load(config_folder, root).task.modalities[0].window == (50, 150)
    dataset = load(config_folder, root, window=(0.0, 200.0))
    assert dataset.task.modalities[0].window == (0, 200)
    middles = dataset.sources["train"][0]["image"][2::4, 2::4, 0].ravel()  # of the blocks
    expected = [50, 60, 70, 80, 90, 100, 110, 150, *[0] * 8]
    np.testing.assert_allclose(middles / 65535 * 200, expected, atol=0.01)


def test_all_folds_have_one_window(tmp_path):
    root = ct_folder(tmp_path / "input", (50, 60, 70, 80, 90, 100, 110, 150))
    for number, low in enumerate((10, 20, 30)):  # in each volume another range
        hu = [blocks_at(dict(enumerate(range(low, low + 80, 10))), rest=-1000)] * 2
        save(root / "imagesTr" / f"a{number}_0000.nii.gz", hu, np.int16, number)
    windows = {
        load(config_folder, root, folds=2, fold=fold).task.modalities[0].window for fold in range(2)
    }
    assert len(windows) == 1


def test_labelled_voxels_of_one_intensity_make_no_window(tmp_path):
    with pytest.raises(InputError, match=r"input: all labelled voxels have the intensity 3071;"):
        load(config_folder, ct_folder(tmp_path / "input", (3071,) * 8))


def strange_label(root):
    save(root / "labelsTr" / "case_004.nii.gz", [blocks_at({3: 4})] * 3, np.uint8, 2)


def one_modality(root):
    save(root / "imagesTr" / "case_004.nii.gz", IMAGES[0], np.float32, 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (strange_label, "{root}/labelsTr/case_004.nii.gz: holds labels [4]"),
        (one_modality, "{root}/imagesTr/case_004.nii.gz: 1 modalities where 2 are expected"),
    ],
)
def test_wrong_content_is_refused_by_name(decathlon, damage, message):
    check_refused(decathlon, damage, message, lambda path: load(config_folder, path))


def test_notes_are_those_of_the_folder_that_is_read_now(decathlon):
    assert "imagesTs/ is not used" in load(config_folder, decathlon).report
    (decathlon / "imagesTs" / "case_002.nii.gz").unlink()
    (decathlon / "imagesTs").rmdir()
    (decathlon / "splits_final.json").write_text("[]")
    again = load(config_folder, decathlon)  # the same contents, so nothing is prepared anew
    assert "imagesTs/" not in again.report and "splits_final.json is not read" in again.report


def test_what_training_would_refuse_is_not_written_as_a_split_either(decathlon, tmp_path):
    for name in CASES:
        path = decathlon / "labelsTr" / f"{name}.nii.gz"
        save_nifti(path, LABELS, np.uint8, HEAD_LAYOUTS[0], (1.0, 1.0, 3.0))
    data = config_folder.get_config().data
    data.path = str(decathlon)
    with pytest.raises(InputError, match=r"labelsTr/case_\d+\.nii\.gz: .*voxels"):
        Builder.write_split(data, "test", tmp_path / "test", None)
    assert not list((tmp_path / "test").rglob("*.nii.gz"))
