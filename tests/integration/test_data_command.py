"""`python -m data`: a split as plain files, in the labels that the model learns."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from configs import folder
from data.folder import Builder
from medsegdiff_jax import scoring, volume_output
from medsegdiff_jax.imaging import read_labels
from medsegdiff_jax.types import InputError, Modality, Task

AFFINE = np.diag([-1.0, -1.0, 2.5, 1.0])
REGIONS = Task(
    ("whole", "core"), (1, 2), False, 2, (Modality("CT arterial"), Modality("CT venous"))
)


@pytest.fixture
def nnunet(tmp_path):
    """An nnU-Net folder: two CT channels, overlapping regions, a listed test case."""
    root = tmp_path / "Dataset001"
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        for channel in range(2):
            scan = rng.normal(40, 30, (6, 5, 4)).astype(np.float32)
            path = root / "imagesTr" / f"{name}_{channel:04d}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(scan, AFFINE), path)
        labels = np.zeros((6, 5, 4), np.uint8)
        labels[1:5, 1:4], labels[2:4, 2:3] = 1, 2
        (root / "labelsTr").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(labels, AFFINE), root / "labelsTr" / f"{name}.nii.gz")
    about = {
        "channel_names": {"0": "CT arterial", "1": "CT venous"},
        "labels": {"background": 0, "whole": [1, 2], "core": 2},
        "numTraining": 3,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(about))
    (root / "test.txt").write_text("c\n")
    return root


def config(path):
    """The data config of a folder."""
    data = folder.get_config().data
    data.path = str(path)
    return data


def test_regions_are_written_as_the_model_learns_them(nnunet, tmp_path):
    output = tmp_path / "test"
    Builder.write_split(config(nnunet), "test", output, None)
    files = sorted(str(path.relative_to(output)) for path in output.rglob("*.nii.gz"))
    assert files == ["images/c_0000.nii.gz", "images/c_0001.nii.gz", "masks/c.nii.gz"]
    written = nib.load(output / "masks" / "c.nii.gz")
    raw = np.asarray(nib.load(nnunet / "labelsTr" / "c.nii.gz").dataobj)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.array([0, 1, 3])[raw])
    np.testing.assert_array_equal(written.affine, AFFINE)
    found = volume_output.find(output, None, REGIONS)
    assert [path.name for path in found["c"]] == ["c_0000.nii.gz", "c_0001.nii.gz"]
    with pytest.raises(InputError, match="--count=2: test has 1 cases"):
        Builder.write_split(config(nnunet), "test", output, 2)


def test_what_is_of_another_split_is_not_mixed_in(nnunet, tmp_path):
    output = tmp_path / "test"
    Builder.write_split(config(nnunet), "test", output, None)
    Builder.write_split(config(nnunet), "test", output, None)  # the same cases again
    (nnunet / "test.txt").write_text("b\n")
    with pytest.raises(InputError, match=r"c\S*\.nii\.gz: is of none of the cases to write"):
        Builder.write_split(config(nnunet), "test", output, None)
    written = {path.name for path in output.rglob("*.nii.gz")}
    assert written == {"c_0000.nii.gz", "c_0001.nii.gz", "c.nii.gz"}


def test_raw_labels_are_no_reference_for_regions(nnunet, tmp_path):
    output, predictions = tmp_path / "test", tmp_path / "predictions"
    Builder.write_split(config(nnunet), "test", output, None)
    predictions.mkdir()
    (output / "masks" / "c.nii.gz").rename(predictions / "c.nii.gz")
    run = {"task": REGIONS.to_json(), "cases": {"c": {"files": {"mask": ["c.nii.gz"]}}}}
    (predictions / "run.json").write_text(json.dumps(run))
    with pytest.raises(InputError, match="labelsTr: holds the labels of a dataset"):
        scoring.evaluate([predictions], [nnunet], None, "strict", 2.0)
    Builder.write_split(config(nnunet), "test", output, None)
    result = scoring.evaluate([predictions], [output], None, "strict", 2.0)
    assert result.table["whole"]["dice"].mean == result.table["core"]["dice"].mean == 1
    nib.save(nib.load(output / "masks" / "c.nii.gz"), output / "masks" / "c.nii")
    with pytest.raises(InputError, match=r"masks: c\.nii and c\.nii\.gz share a stem"):
        scoring.evaluate([predictions], [output], None, "strict", 2.0)


def test_pictures_keep_their_files_and_raters(tmp_path):
    root, rng = tmp_path / "input", np.random.default_rng(0)
    for name in "abcde":
        for kind in ("images", "masks_one", "masks_two"):
            (root / kind).mkdir(parents=True, exist_ok=True)
            labels = rng.integers(0, 4, (7, 6), dtype=np.uint8)
            Image.fromarray(labels).save(root / kind / f"{name}.bmp")
    (root / "dataset.json").write_text('{"classes": {"disc": 1, "cup": 2}, "exclusive": false}')
    (root / "test.txt").write_text("e\nb\n")
    output = tmp_path / "out"
    Builder.write_split(config(root), "test", output, None)
    for name in "eb":
        source = root / "images" / f"{name}.bmp"
        assert (output / "images" / f"{name}.bmp").read_bytes() == source.read_bytes()
        for rater in ("one", "two"):
            expected = read_labels(root / f"masks_{rater}" / f"{name}.bmp")
            written = read_labels(output / f"masks_{rater}" / f"{name}.png")
            np.testing.assert_array_equal(written, expected)
    assert json.loads((output / "dataset.json").read_text()) == {
        "classes": {"disc": 1, "cup": 2},
        "exclusive": False,
    }
    again = Builder.catalogue(output, "", 0.1)  # what was written is a dataset itself
    assert again.raters == ("one", "two") and len(again.cases) == 2


def test_an_unknown_dataset_is_refused_by_the_command(command, tmp_path):
    flags = ("--config=configs/folder.py", f"--output={tmp_path}", "--config.data.name=catalogue")
    assert "data.name: 'catalogue' is not one of" in command("data/__main__.py", *flags).refusal
