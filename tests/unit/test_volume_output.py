"""Which NIfTI files make which case."""

import nibabel as nib
import numpy as np
import pytest

from medsegdiff_jax import volume_output
from medsegdiff_jax.types import InputError, Modality, Task

ONE = Task(("tumour",), (1,), True, 1, (Modality("MR"),))
TWO = Task(("tumour",), (1,), True, 2, (Modality("t1"), Modality("t1ce")))


def folder_of(root, *names):
    """A folder of tiny volumes with these names."""
    root.mkdir(parents=True)
    for name in names:
        nib.save(nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), root / name)
    return root


@pytest.mark.parametrize(
    ("task", "names", "cases"),
    [
        (ONE, ("b.nii", "a.nii.gz"), {"a": ["a.nii.gz"], "b": ["b.nii"]}),
        (ONE, ("a_0000.nii.gz", "b_0000.nii.gz"), {"a": ["a_0000.nii.gz"], "b": ["b_0000.nii.gz"]}),
        # A number that not all files have is part of the name.
        (ONE, ("a_0000.nii.gz", "b.nii.gz"), {"a_0000": ["a_0000.nii.gz"], "b": ["b.nii.gz"]}),
        (ONE, ("amos_0004.nii.gz", "amos_0507.nii.gz"), None),
        (ONE, ("amos_0004.nii.gz",), None),
        (TWO, ("a_0001.nii.gz", "a_0000.nii.gz"), {"a": ["a_0000.nii.gz", "a_0001.nii.gz"]}),
        (
            TWO,
            ("B_1_t1ce.nii.gz", "B_1_T1.nii.gz", "B_1_seg.nii.gz"),
            {"B_1": ["B_1_T1.nii.gz", "B_1_t1ce.nii.gz"]},
        ),
        (TWO, ("both.nii.gz",), {"both": ["both.nii.gz"]}),
    ],
)
def test_cases_and_modalities_by_name(tmp_path, task, names, cases):
    root = folder_of(tmp_path / "scans", *names, "._hidden.nii.gz")
    (root / "notes.txt").touch()
    found = volume_output.find(root, None, task)
    if cases is None:  # a file is a case
        cases = {name.removesuffix(".nii.gz"): [name] for name in names}
    assert {case: [path.name for path in paths] for case, paths in found.items()} == cases


def test_a_file_brings_the_other_modalities_of_its_case(tmp_path):
    names = ("a_t1.nii.gz", "a_t1ce.nii.gz", "b_t1.nii.gz", "b_t1ce.nii.gz", "b_seg.nii.gz")
    root = folder_of(tmp_path / "scans", *names)
    found = volume_output.find(root / "b_t1ce.nii.gz", None, TWO)
    assert found == {"b": (root / "b_t1.nii.gz", root / "b_t1ce.nii.gz")}
    (alone,) = volume_output.find(root / "b_seg.nii.gz", None, ONE).values()
    assert alone == (root / "b_seg.nii.gz",)


def test_a_folder_in_the_folder_is_preferred_and_a_list_chooses(tmp_path):
    folder_of(tmp_path / "data" / "imagesTr", "train.nii.gz")
    folder_of(tmp_path / "data" / "imagesTs", "x.nii.gz", "y.nii.gz")
    (tmp_path / "list.txt").write_text("y\n")
    assert list(volume_output.find(tmp_path / "data", None, ONE)) == ["x", "y"]
    assert list(volume_output.find(tmp_path / "data", tmp_path / "list.txt", ONE)) == ["y"]
    (tmp_path / "list.txt").write_text("y\ntrain\n", "utf-8-sig")  # as some editors write it
    found = volume_output.find(tmp_path / "data", tmp_path / "list.txt", ONE)
    assert list(found) == ["y", "train"]


@pytest.mark.parametrize(
    ("task", "names", "message"),
    [
        (TWO, ("a_t1ce.nii.gz",), "a_t1ce.nii.gz: no file of modality t1 beside it"),
        (TWO, tuple(f"a_{i:04d}.nii.gz" for i in range(3)), "3 modalities where the model has 2"),
        (ONE, ("a.nii", "a.nii.gz"), "two files for one volume"),
        (ONE, (), r"no image \(.nii.gz, .nii\)"),
    ],
)
def test_what_fits_no_case_is_refused_by_name(tmp_path, task, names, message):
    with pytest.raises(InputError, match=message):
        volume_output.find(folder_of(tmp_path / "scans", *names), None, task)
