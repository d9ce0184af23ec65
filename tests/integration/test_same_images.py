"""Sampling shows the network what training showed it, pixel by pixel, from the same files."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from configs import folder as config_folder
from data import staging
from medsegdiff_jax import picture_output, volume_output
from medsegdiff_jax.checkpoint import LoadedModel
from medsegdiff_jax.input_pipeline import eval_batches
from medsegdiff_jax.segmenter import Segmenter
from medsegdiff_jax.types import Task, volume_of
from tests.layouts import HEAD_LAYOUTS, SIDE, load, save_image, save_nifti, write_json


def smooth(rng, *shape):
    """Random fields [..., H, W] without any symmetry."""
    return ndimage.gaussian_filter(rng.random(shape), (0,) * (len(shape) - 2) + (1.5, 1.5))


def shown_by_training(dataset):
    """Id -> image of all validation examples."""
    batches = eval_batches(dataset, "validation", batch_size=1)
    return {batch["id"][0]: batch["image"][0] for batch in batches}


def shown_by_sampling(dataset, fields, module, source, monkeypatch):
    """Id -> image of what `module` (of pictures or of volumes) makes of the files in `source`."""
    config = config_folder.get_config("default,tiny")
    config.data.update(fields, image_size=SIDE)
    segmenter = Segmenter(LoadedModel({}, config, dataset.task, "", {}))
    seen = {}

    def stream(cases, *_, **__):
        seen.update((name, segmenter._prepare(name, image)) for name, image in cases)
        return iter(())

    monkeypatch.setattr(segmenter, "stream", stream)
    cases = module.find(source, None, dataset.task)
    list(module.segment(segmenter, cases, segmenter.choose(), ("mask",), pytest.fail))
    return seen


def check_same(trained, sampled):
    assert trained
    for name, image in trained.items():
        np.testing.assert_array_equal(sampled[name], image, err_msg=name)
        assert not np.array_equal(image, image[:, ::-1])


@pytest.mark.parametrize(
    ("plane", "depth"), [("axial", 6), ("coronal", 9), ("sagittal", 7)], ids=lambda one: str(one)
)
@pytest.mark.parametrize("neighbours", [0, 1])
def test_slices_of_volumes(tmp_path, monkeypatch, plane, depth, neighbours):
    rng, root = np.random.default_rng(0), tmp_path / "scans"
    modalities, labels = {"0": "CT", "1": "T1w"}, {"background": 0, "tumour": 1}
    write_json(root, {"channel_names": modalities, "labels": labels})
    for number, layout in enumerate(HEAD_LAYOUTS):
        codes, *_ = layout
        of_slices, how = smooth(rng, 3, 6, 9, 7), ((codes, 1, 1), (1.0, 1.0, 2.0))
        for channel, pictures in enumerate(1000 * of_slices[:2]):
            path = root / "imagesTr" / f"scan_{number}_{channel:04d}.nii.gz"
            save_nifti(path, pictures, np.float32, *how)
        marked = of_slices[2] > of_slices[2].mean()
        save_nifti(root / "labelsTr" / f"scan_{number}.nii.gz", marked, np.uint8, *how)
    (root / "val.txt").write_text("scan_1\nscan_2\n")
    fields = {"plane": plane, "neighbours": neighbours}
    dataset = load(config_folder, root, **fields)
    trained = shown_by_training(dataset)
    assert [volume_of(one) for one in trained] == ["scan_1"] * depth + ["scan_2"] * depth
    source = root / "imagesTr"
    check_same(trained, shown_by_sampling(dataset, fields, volume_output, source, monkeypatch))


def test_regions_that_overlap_are_resized_each_on_its_own():
    regions = Task(("whole", "core"), (1, 2), False, 1)
    labels = np.array([[0, 0, 1, 1, 3], [0, 0, 1, 3, 3]])
    assert staging.resize_annotation(labels, (1, 1), regions).tolist() == [[1]]
    classes = dataclasses.replace(regions, exclusive=True)
    assert staging.resize_annotation(labels, (1, 1), classes).tolist() == [[0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pictures_of_any_size(tmp_path, monkeypatch, dtype):
    rng, root = np.random.default_rng(0), tmp_path / "pictures"
    for number, size in enumerate([(16, 16), (37, 22), (9, 40), (64, 64)]):
        grey = (smooth(rng, *size) * np.iinfo(dtype).max).astype(dtype)
        colours = dtype is np.uint8 and number % 2  # grey ones become colour images
        picture = np.dstack([grey, grey // 2, grey]) if colours else grey
        save_image(root / "images" / f"{number}.png", picture)
        save_image(root / "masks" / f"{number}.png", (grey > grey.mean()).astype(np.uint8))
    (root / "val.txt").write_text("1\n2\n3\n")
    dataset = load(config_folder, root)
    assert dataset.task.image_channels == (3 if dtype is np.uint8 else 1)
    trained = shown_by_training(dataset)
    assert list(trained) == ["1", "2", "3"]
    source = root / "images"
    check_same(trained, shown_by_sampling(dataset, {}, picture_output, source, monkeypatch))
