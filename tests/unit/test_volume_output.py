"""Which NIfTI files make which case, and how a volume of slices is decided."""

import functools

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import expit, softmax

from medsegdiff_jax import decision, display, fusion, imaging, volume_output
from medsegdiff_jax.metrics import apply_temperature
from medsegdiff_jax.segmenter import CaseResult
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
        (ONE, ("a_0000.nii.gz", "a_0001.nii.gz", "a_0002.nii.gz"), None),
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
        (
            ONE,
            ("a_0000.nii", "a_0001.nii", "b_0000.nii", "b_0001.nii"),
            "a_0000.nii: 2 modalities where the model has 1 ",
        ),
        (ONE, ("a.nii", "a.nii.gz"), "two files for one volume"),
        (ONE, (), r"no image \(.nii.gz, .nii\)"),
    ],
)
def test_what_fits_no_case_is_refused_by_name(tmp_path, task, names, message):
    with pytest.raises(InputError, match=message):
        volume_output.find(folder_of(tmp_path / "scans", *names), None, task)


CT = (Modality("CT", (-100.0, 100.0)),)


def at_temperature(method, temperature, task):
    """How to decide a volume, and what scales its probabilities."""
    scaled = functools.partial(apply_temperature, temperature=temperature, one_hot=task.one_hot)
    return volume_output._How(method, None if temperature == 1 else scaled)


def filled(tmp_path, task, how, save, sharpness=9.0, shift=0.0):
    """A volume all of whose slices have come, and its probabilities."""
    rng = np.random.default_rng(0)
    scan = tmp_path / "x.nii.gz"
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    nib.save(nib.Nifti1Image(rng.normal(size=(14, 9, 5)).astype(np.float32), affine), scan)
    volume = volume_output._Volume("x", (scan,), "axial", task, save, how)
    shape = (*volume.slices.shape[:3], task.mask_channels)
    height = sharpness * gaussian_filter(rng.normal(size=shape), (0, 2, 2, 0)) + shift
    probability = (softmax(height, -1) if task.one_hot else expit(height)).astype(np.float32)
    for index, plane in enumerate(probability):
        volume.add(
            CaseResult(
                case_id=f"x/{index:04d}",
                image=volume.slices[index],
                mask=imaging.mask_to_labels(fusion.decide(plane, task), task),
                probability=plane,
                uncertainty=np.zeros(plane.shape[:2], np.float32),
                fused_members=2,
                seconds=0.0,
            )
        )
    return volume, probability


@pytest.mark.parametrize(
    "task",
    [
        Task(("a",), (300,), True, 1, CT),
        Task(("a", "b", "c"), (1, 7, 300), True, 1, CT),
        Task(("a", "b"), (1, 2), False, 1, CT),
    ],
)
@pytest.mark.parametrize("method", decision.METHODS)
@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.0])
def test_a_volume_is_decided_before_the_temperature(tmp_path, task, method, temperature):
    how = at_temperature(method, temperature, task)
    volume, probability = filled(tmp_path, task, how, ("mask",))
    scaled = apply_temperature(probability, temperature, one_hot=task.one_hot)
    assert volume.files().write(tmp_path) == {"mask": ["x.nii.gz"]}
    decide = decision.rule(method, lambda: iter(probability), task)
    expected = imaging.mask_to_labels(decide(probability), task)
    found = volume._results["mask"][0]
    assert found.dtype == expected.dtype and found.any()
    if method == "probable":
        np.testing.assert_array_equal(found, expected)
        return
    wrong = imaging.mask_to_labels(decision.rule(method, lambda: iter(scaled), task)(scaled), task)
    differ = [np.count_nonzero(mask != expected) for mask in (found, wrong)]
    assert differ[0] <= 5  # the probabilities are kept in 8 bits
    assert temperature == 1 or differ[1] > 5 * differ[0]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.0])
def test_the_probability_that_is_written_is_scaled(tmp_path, temperature):
    task = Task(("a", "b"), (1, 2), False, 1, CT)
    how = at_temperature("dice", temperature, task)
    volume, probability = filled(tmp_path, task, how, ("probability",))
    scaled = apply_temperature(probability, temperature, one_hot=False)
    written = volume.files().write(tmp_path)
    assert written == {"probability": ["x_probability_a.nii.gz", "x_probability_b.nii.gz"]}
    found = np.stack(volume._results["probability"], axis=-1)
    np.testing.assert_array_equal(found, display.to_byte(scaled.astype(np.float32)))


@pytest.mark.parametrize("temperature", [0.1, 0.3, 3.0])
@pytest.mark.parametrize(("sharpness", "shift"), [(5.0, -2.5), (60.0, -20.0)])
def test_a_temperature_moves_no_mask_of_low_probabilities(tmp_path, temperature, sharpness, shift):
    """Most are below 0.2, or so low that no temperature can be undone there."""
    task, masks = Task(("a",), (1,), False, 1, CT), []
    for scale in (1.0, temperature):
        how = at_temperature("dice", scale, task)
        volume, _ = filled(tmp_path, task, how, ("mask",), sharpness, shift)
        volume.files()
        masks.append(volume._results["mask"][0])
    assert masks[0].any()
    np.testing.assert_array_equal(*masks)


def test_how_much_the_decision_marks_is_said(tmp_path):
    task = Task(("a",), (1,), False, 1, CT)
    how = at_temperature("dice", 1.0, task)
    volume, probability = filled(tmp_path, task, how, ("mask",), 5.0, -2.5)
    growth = volume.files().growth
    marked = np.count_nonzero(volume._results["mask"][0])
    assert growth == marked / np.count_nonzero(probability >= 0.5) > 1
