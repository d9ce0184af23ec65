"""BraTS 2021 from its official layout to batches."""

import shutil

import numpy as np
import pytest

from configs import brats2021
from data.brats2021 import Builder
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError
from tests.layouts import HEAD_LAYOUTS, blocks_at, case_ids, check_refused, load, remove, save_nifti

TRAINING = "RSNA_ASNR_MICCAI_BraTS2021_TrainingData"
SEQUENCES = ("t1", "t1ce", "t2", "flair")
NUMBERS = (0, 2, 3, 5, 6, 8, 9, 11, 12, 14)  # as in the data, some are missing
CASES = [f"BraTS2021_{number:05d}" for number in NUMBERS]
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4


def save(path, pictures, dtype, layout=0):
    """`layout` counts through HEAD_LAYOUTS; all volumes are spaced alike."""
    save_nifti(path, pictures, dtype, HEAD_LAYOUTS[layout % 4], (1.0, 1.0, 3.0), (-20, 5, 70))


# From below: empty, three kinds of tissue, oedema alone, empty.
LABELS = [
    blocks_at({}),
    blocks_at({5: OEDEMA, 6: NECROSIS, 9: ENHANCING}),
    blocks_at({5: OEDEMA, 10: OEDEMA}),
    blocks_at({}),
]


def write_case(folder, layout=0, suffix=".nii.gz"):
    """One case; each sequence is bright in a block of its own."""
    name = folder.name
    for index, sequence in enumerate(SEQUENCES):
        image = [blocks_at({index: 900 + 50 * index}, rest=100)] * len(LABELS)
        save(folder / f"{name}_{sequence}{suffix}", image, np.int16, layout)
    save(folder / f"{name}_seg{suffix}", LABELS, np.uint8, layout)


@pytest.fixture
def root(tmp_path):
    """Ten cases, what macOS and the challenge add, and an unlabelled validation case."""
    folder = tmp_path / "input"
    for index, name in enumerate(CASES):
        write_case(folder / TRAINING / name, index, ".nii" if index == 3 else ".nii.gz")
    (folder / TRAINING / CASES[0] / f"._{CASES[0]}_t1.nii.gz").write_bytes(b"\0")
    (folder / TRAINING / ".DS_Store").write_bytes(b"\0")
    (folder / TRAINING / "BraTS21-17_Mapping.xlsx").write_bytes(b"\0")
    hidden = folder / "RSNA_ASNR_MICCAI_BraTS2021_ValidationData" / "BraTS2021_00001"
    for sequence in SEQUENCES:
        save(hidden / f"BraTS2021_00001_{sequence}.nii.gz", LABELS, np.int16)
    return folder


def catalogue(path, variant="regions", fraction=0.25):
    return Builder.catalogue(path, variant, fraction)


def test_a_case_is_a_patient_with_four_sequences(root):
    found = catalogue(root)
    case = next(case for case in found.cases if case.id == CASES[0])
    assert [path.name for path in case.images] == [f"{CASES[0]}_{s}.nii.gz" for s in SEQUENCES]
    assert case.raters[0][0].path.name == f"{CASES[0]}_seg.nii.gz"
    assert [one.name for one in found.task.modalities] == list(SEQUENCES)
    assert all(one.window is None for one in found.task.modalities)
    assert found.raters == ("",) and found.task.image_channels == 4
    assert sorted(case.id for case in found.cases) == CASES


def test_a_fifth_is_for_testing_whatever_the_rest(root):
    splits = case_ids(catalogue(root))
    assert {split: len(cases) for split, cases in splits.items()} == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }
    assert sorted(sum(splits.values(), [])) == CASES
    # Pinned: a number from another version must not be of other patients.
    assert splits["test"] == ["BraTS2021_00005", "BraTS2021_00012"]
    assert case_ids(catalogue(root, fraction=0.0))["test"] == splits["test"]
    assert not case_ids(catalogue(root, fraction=0.0))["validation"]


def test_every_official_way_to_unpack_is_found(root):
    expected = case_ids(catalogue(root))
    assert case_ids(catalogue(root / TRAINING)) == expected
    for index, name in enumerate(CASES):  # as on TCIA
        source = root / "tcia" / ("UPENN-GBM" if index % 2 else "TCGA-LGG")
        shutil.copytree(root / TRAINING / name, source / name)
    assert case_ids(catalogue(root / "tcia")) == expected


REGIONS = {
    "whole tumour": [{}, {5, 6, 9}, {5, 10}, {}],
    "tumour core": [{}, {6, 9}, {}, {}],
    "enhancing tumour": [{}, {9}, {}, {}],
}
TISSUES = {
    "necrotic core": [{}, {6}, {}, {}],
    "oedema": [{}, {5}, {5, 10}, {}],
    "enhancing tumour": [{}, {9}, {}, {}],
}
VARIANTS = {
    "": (REGIONS, False, {0, 1, 1 + 2, 1 + 2 + 4}),
    "whole": ({"whole tumour": REGIONS["whole tumour"]}, True, {0, 1}),
    "labels": (TISSUES, True, {0, 1, 2, 4}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_labels_become_the_regions_of_the_variant(root, variant):
    expected, exclusive, stored = VARIANTS[variant]
    dataset = load(brats2021, root, variant)
    assert dataset.task.classes == tuple(expected) and dataset.task.exclusive == exclusive
    first = 1 if dataset.task.one_hot else 0  # channel 0 is the background
    seen = []
    for split in ("train", "validation", "test"):
        for batch in input_pipeline.eval_batches(dataset, split, batch_size=4):
            assert [one[-5:] for one in batch["id"]] == ["/0000", "/0001", "/0002", "/0003"]
            seen.append(batch["id"][0].rpartition("/")[0])
            for channel, name in enumerate(expected, start=first):
                for mask, blocks in zip(batch["mask"], expected[name], strict=True):
                    wanted = blocks_at(dict.fromkeys(blocks, 1))
                    np.testing.assert_array_equal(mask[..., channel], wanted, f"{seen[-1]} {name}")
    assert sorted(seen) == CASES  # a batch of four slices is a volume
    values = {int(v) for example in dataset.sources["train"] for v in np.unique(example["labels"])}
    assert values == stored


def test_every_sequence_is_a_channel_scaled_by_itself(root):
    dataset = load(brats2021, root)
    for batch in input_pipeline.eval_batches(dataset, "train", batch_size=4):
        for channel in range(4):
            image = batch["image"][1, ..., channel]
            bright = np.zeros((4, 4), bool)
            bright.flat[channel] = True
            # Pixels beside the edges of a block are blends.
            np.testing.assert_allclose(image[1::4, 1::4], np.where(bright, 1, -1), atol=1e-3)


def damage_label(root):
    """As BraTS 2023 writes it."""
    path = root / TRAINING / CASES[4] / f"{CASES[4]}_seg.nii.gz"
    save(path, [blocks_at({2: 3})] * 4, np.uint8, layout=4)


def rename(old, new):
    return lambda root: (root / TRAINING / old).rename(root / TRAINING / new)


REFUSED = {
    "no case": (remove(TRAINING), "{root}: has no folder BraTS2021_00000/"),
    "empty": (
        lambda root: [shutil.rmtree(root / TRAINING / name) for name in CASES],
        "{root}/" + TRAINING + ": has no folder BraTS2021_00000/",
    ),
    "sequence": (
        remove(f"{TRAINING}/{CASES[1]}/{CASES[1]}_t1ce.nii.gz"),
        "{root}/" + f"{TRAINING}/{CASES[1]}: has no {CASES[1]}_t1ce.nii.gz",
    ),
    "labels": (
        remove(f"{TRAINING}/{CASES[1]}/{CASES[1]}_seg.nii.gz"),
        f"{CASES[1]}: has no {CASES[1]}_seg.nii.gz; cases without labels are not used",
    ),
    "both suffixes": (
        lambda root: write_case(root / TRAINING / CASES[3]),
        f"{CASES[3]}: {CASES[3]}_flair.nii and {CASES[3]}_flair.nii.gz share a stem",
    ),
    "name": (
        rename(CASES[1], "BraTS2021_00077"),
        "BraTS2021_00077: has no BraTS2021_00077_t1.nii.gz",
    ),
    "label 3": (damage_label, f"{CASES[4]}_seg.nii.gz: holds labels [3]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(root, name):
    check_refused(root, *REFUSED[name], lambda path: load(brats2021, path))


def test_path_and_variant_are_asked_for(tmp_path):
    with pytest.raises(InputError, match=r"data\.path: .*" + TRAINING):
        load(brats2021, tmp_path / "absent")
    tmp_path.joinpath("here").mkdir()
    with pytest.raises(InputError, match=r"data\.variant: 'edema' is not one of 'regions'"):
        load(brats2021, tmp_path / "here", "edema")
