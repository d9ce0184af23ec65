"""TFDS builder for BraTS 2021: brain tumours in four co-registered MR sequences."""

import re
from pathlib import Path

from data.builder import SegmentationBuilder
from data.catalogue import Case, Catalogue, MaskFile, held_out_splits
from data.layout import find_folder
from medsegdiff_jax.imaging import files_by_stem
from medsegdiff_jax.types import InputError, Modality, Task
from medsegdiff_jax.volumes import SUFFIXES

_TRAINING = "RSNA_ASNR_MICCAI_BraTS2021_TrainingData"
_CASE = re.compile(r"BraTS2021_\d{5}")
_SEQUENCES = ("t1", "t1ce", "t2", "flair")
_MODALITIES = tuple(Modality(name) for name in _SEQUENCES)

_WHOLE, _CORE, _ENHANCING = 1, 2, 4  # bits of the regions
# The files say 1 necrotic core, 2 oedema, 4 enhancing tumour.
_TASKS = {
    "regions": (
        Task(
            ("whole tumour", "tumour core", "enhancing tumour"),
            (_WHOLE, _CORE, _ENHANCING),
            False,
            len(_MODALITIES),
            _MODALITIES,
        ),
        {0: 0, 1: _WHOLE | _CORE, 2: _WHOLE, 4: _WHOLE | _CORE | _ENHANCING},
    ),
    "whole": (
        Task(("whole tumour",), (1,), True, len(_MODALITIES), _MODALITIES),
        {0: 0, 1: 1, 2: 1, 4: 1},
    ),
    "labels": (
        Task(
            ("necrotic core", "oedema", "enhancing tumour"),
            (1, 2, 4),
            True,
            len(_MODALITIES),
            _MODALITIES,
        ),
        {0: 0, 1: 1, 2: 2, 4: 4},
    ),
}


class Builder(SegmentationBuilder):
    """BraTS 2021 task 1, the 1251 labelled cases: t1, t1ce, t2 and flair, skull-stripped."""

    name = "brats2021"
    description = (
        "Gliomas in four co-registered, skull-stripped MR sequences of 240 x 240 x 155 voxels of "
        "1 mm; the labelled training set of the RSNA-ASNR-MICCAI challenge."
    )
    homepage = "https://www.synapse.org/brats2021"
    licence = "terms of the challenge, see homepage"
    instructions = (
        f"Get the training data of task 1 and unpack them so that it holds {_TRAINING}/, or the "
        "folders BraTS2021_00000/ and so on (data/brats2021/README.md)."
    )
    variants = tuple(_TASKS)

    @classmethod
    def catalogue(cls, root: Path, variant: str, validation_fraction: float) -> Catalogue:
        """A folder per patient; a fifth of them is held out for testing."""
        task, values = _TASKS[variant]
        cases = {
            name: _case(folder, values) for name, folder in sorted(_case_folders(root).items())
        }
        return Catalogue(
            root=root,
            task=task,
            raters=("",),
            splits=held_out_splits(cases.values(), validation_fraction),
            notes=(
                "test is a fifth of the labelled patients by a hash of their names; the official "
                "validation and test sets have no public labels",
            ),
        )


def _case_folders(root: Path) -> dict[str, Path]:
    """Name -> folder: in the official folder, directly below, or one level down."""
    root = find_folder(root, _TRAINING) or root
    for pattern in ("*", "*/*"):
        found = {
            path.name: path
            for path in sorted(root.glob(pattern))
            if _CASE.fullmatch(path.name) and path.is_dir() and "Validation" not in path.parent.name
        }
        if found:
            return found
    raise InputError(f"{root}: has no folder BraTS2021_00000/ or the like, nor {_TRAINING}/")


def _case(folder: Path, values: dict[int, int]) -> Case:
    files = files_by_stem(folder, SUFFIXES)
    names = [f"{folder.name}_{kind}" for kind in (*_SEQUENCES, "seg")]
    missing = [name for name in names if name not in files]
    if missing == names[-1:]:
        raise InputError(f"{folder}: has no {missing[0]}.nii.gz; cases without labels are not used")
    if missing:
        raise InputError(f"{folder}: has no {missing[0]}.nii.gz")
    *images, labels = (files[name] for name in names)
    return Case(folder.name, tuple(images), ((MaskFile(labels, values),),))
