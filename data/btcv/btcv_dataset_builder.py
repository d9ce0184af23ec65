"""TFDS builder for BTCV (Beyond the Cranial Vault): abdominal organs in CT."""

import re
from pathlib import Path

from data.builder import SegmentationBuilder
from data.catalogue import Case, Catalogue, MaskFile, held_out_splits
from data.layout import find_folder
from data.pairing import paired
from medsegdiff_jax.imaging import files_by_stem
from medsegdiff_jax.types import InputError, Modality, Task
from medsegdiff_jax.volumes import SUFFIXES

_FOLDERS = ("RawData/Training/img", "Abdomen/RawData/Training/img", "Training/img", "img")
_CT = (Modality("CT", (-175.0, 250.0)),)  # Tang et al. 2022 (Swin UNETR) for this dataset
_ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
_VALUES = tuple(range(1, len(_ORGANS) + 1))
_SAME = {value: value for value in (0, *_VALUES)}
_TASKS = {
    "13": (Task(_ORGANS, _VALUES, True, 1, _CT), _SAME),
    "12": (
        Task((*_ORGANS[:11], "adrenal glands"), _VALUES[:12], True, 1, _CT),
        {**_SAME, 13: 12},
    ),
}


class Builder(SegmentationBuilder):
    """BTCV, abdomen: the 30 labelled CT scans."""

    name = "btcv"
    description = "13 abdominal organs and vessels in 30 CT scans in the portal venous phase."
    homepage = "https://www.synapse.org/Synapse:syn3193805"
    licence = "terms of the challenge, see homepage"
    instructions = (
        "Get Abdomen/RawData.zip (Synapse, syn3193805, after registration) and unpack it so that "
        "the folder holds RawData/ (data/btcv/README.md)."
    )
    variants = tuple(_TASKS)

    @classmethod
    def catalogue(cls, root: Path, variant: str, validation_fraction: float) -> Catalogue:
        """A scan is a patient; a fifth of the labelled ones is held out for testing."""
        task, values = _TASKS[variant]
        folder = find_folder(root, *_FOLDERS)
        if folder is None:
            raise InputError(f"{root}: has no folder {_FOLDERS[0]}/")
        images = _numbered(folder, "img")
        labels = _numbered(folder.parent / "label", "label")
        cases = {
            f"img{number}": Case(f"img{number}", (image,), ((MaskFile(mask, values),),))
            for number, (image, mask) in paired(images, labels).items()
        }
        if not cases:
            raise InputError(f"{folder}: no scan img0001.nii.gz or the like")
        return Catalogue(
            root=root,
            task=task,
            raters=("",),
            splits=held_out_splits(cases.values(), validation_fraction),
            notes=(
                "test is a fifth of the labelled scans by a hash of their names; the official test "
                "set has no public labels",
            ),
        )


def _numbered(folder: Path, kind: str) -> dict[str, Path]:
    """Number -> file of img0001.nii.gz or label0001.nii.gz."""
    found = files_by_stem(folder, SUFFIXES).items()
    matches = ((re.fullmatch(kind + r"(\d{4})", name), path) for name, path in found)
    return {match[1]: path for match, path in matches if match}
