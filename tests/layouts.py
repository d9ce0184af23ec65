"""What tests of datasets share: small files in official layouts, damage to them, refusals.

A damage is a function of the dataset's folder, `root`; paths given to its factory are below it.
"""

import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest
from nibabel import orientations
from PIL import Image

from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError

SIDE = 16  # of prepared pictures and of those drawn here, in pixels

# How a volume may be stored: axis codes, voxel rows and voxel columns per pixel of a picture.
HEAD_LAYOUTS = (("RAS", 1, 2), ("LPS", 2, 1), ("PIR", 3, 1), ("ASL", 1, 1))
ABDOMEN_LAYOUTS = (("LAS", 2, 3), ("RPS", 1, 2), ("SLP", 3, 1), ("LPI", 1, 1))

# One dataset of two channels: its cases and dataset.json as the Decathlon and nnU-Net have it.
CASES = [f"case_{number:03d}" for number in (1, 3, 4, 6, 7, 8, 14, 15, 17, 19)]
DECATHLON = {
    "name": "Example",
    "modality": {"0": "FLAIR", "1": "T1w"},
    "labels": {"0": "background", "1": "core", "3": "rim", "2": "oedema"},
    "test": ["./imagesTs/case_002.nii.gz"],
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


def blocks(values):
    """16 x 16 pixels in 4 x 4 blocks of these 16 values, row by row."""
    return np.kron(np.reshape(values, (4, 4)), np.ones((4, 4), int))


def blocks_at(differing, rest=0):
    """16 x 16 pixels of `rest`, in 4 x 4 blocks of which some (number -> value) differ."""
    return blocks([differing.get(number, rest) for number in range(16)])


def painted(size, background, *regions):
    """A uint8 label map of this (height, width) in pixels with regions painted in order.

    A region is ((top, bottom, left, right), value), in cells of a SIDE x SIDE grid of which those
    at bottom and right are no longer part of it.
    """
    labels = np.full(size, background, np.uint8)
    height, width = size[0] // SIDE, size[1] // SIDE
    for (top, bottom, left, right), value in regions:
        labels[top * height : bottom * height, left * width : right * width] = value
    return labels


def save_image(path, array, **options):
    """Saves an array as an image with these options of its format, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def save_nifti(path, pictures, dtype, layout, spacing, origin=(0, 0, 0)):
    """Saves axial pictures from below (front at the top, patient's right at the left) as NIfTI.

    Several lists of pictures become a fourth axis. `layout` is as in HEAD_LAYOUTS; `spacing` is
    that of the pixels (x, y) and the slices (z), `origin` the position (x, y, z) of the voxel
    that is furthest left, back and down in the patient, both in mm.
    """
    codes, rows, columns = layout
    slices = np.asarray(pictures).repeat(rows, axis=-2).repeat(columns, axis=-1)
    affine = np.diag([spacing[0] / columns, spacing[1] / rows, spacing[2], 1.0])
    affine[:3, 3] = origin
    image = nib.Nifti1Image(np.flip(slices, (-2, -1)).T.astype(dtype), affine)
    ras, stored = map(orientations.axcodes2ornt, ("RAS", codes))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(orientations.ornt_transform(ras, stored)), path)


def write_json(root, fields):
    """Writes root/dataset.json, making the folder."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(fields), encoding="utf-8")


def case_ids(catalogue):
    """Split -> case ids of a catalogue, in its order."""
    return {split: [case.id for case in cases] for split, cases in catalogue.splits.items()}


def load(config, root, variant="", cache=None, **fields):
    """The dataset prepared at SIDE x SIDE pixels as the tiny shipped config (its module) says.

    The cache lies beside the root unless another folder is given. `fields` are others of the data.
    """
    data = config.get_config("default,tiny").data
    data.update(fields)
    data.path, data.image_size, data.variant = str(root), SIDE, variant
    data.cache_dir = str(cache or root.parent / "cache")
    return input_pipeline.load(data)


def remove(name):
    """Damage: no file or folder there; there has to be one."""
    return lambda root: (shutil.rmtree if (root / name).is_dir() else os.unlink)(root / name)


def text(name, content):
    """Damage: this text there."""
    return lambda root: (root / name).write_text(content)


def touch(*names):
    """Damage: empty files there, for a catalogue that looks at names alone."""

    def damage(root):
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()

    return damage


def check_refused(root, damage, message, read):
    """After the damage, read(root) raises InputError of one line that holds the message.

    In the message, {root} stands for the folder.
    """
    damage(root)
    with pytest.raises(InputError) as caught:
        read(root)
    line = str(caught.value)
    assert message.format(root=root) in line and "\n" not in line, line
