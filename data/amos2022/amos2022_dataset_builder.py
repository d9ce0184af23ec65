"""TFDS builder for AMOS 2022: 15 abdominal organs in CT and MR."""

import re
from pathlib import Path

from data.builder import SegmentationBuilder
from data.catalogue import Case, Catalogue, MaskFile
from data.layout import find_folder, official_splits
from data.pairing import paired
from medsegdiff_jax.imaging import files_by_stem
from medsegdiff_jax.types import InputError, Modality, Task
from medsegdiff_jax.volumes import SUFFIXES

_SCAN = re.compile(r"amos_(\d{4})")
_LAST_CT = 500  # MR scans have higher numbers
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
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate or uterus",
)
_VALUES = range(len(_ORGANS) + 1)
_MODALITIES = {
    # Level 40, width 400 HU: soft tissue (Ma et al. 2024, MedSAM, for abdominal CT).
    "ct": Modality("CT", (-160.0, 240.0)),
    "mr": Modality("MR"),
    # No window serves both; the percentiles of each volume do.
    "ct+mr": Modality("CT or MR"),
}


class Builder(SegmentationBuilder):
    """AMOS 2022: the 300 CT and 60 MR scans with public labels."""

    name = "amos2022"
    description = "15 abdominal organs in CT and MR scans of several hospitals and scanners."
    homepage = "https://amos22.grand-challenge.org"
    licence = "CC BY 4.0, CC BY-SA 4.0 or non-commercial: sources disagree, see README.md"
    instructions = (
        "Get https://zenodo.org/record/7262581/files/amos22.zip and unpack it so that the folder "
        "holds amos22/ (data/amos2022/README.md)."
    )
    variants = tuple(_MODALITIES)

    @classmethod
    def catalogue(cls, root: Path, variant: str, validation_fraction: float) -> Catalogue:
        """Official training and validation set; the latter is the test split."""
        images = find_folder(root, "amos22/imagesTr", "imagesTr")
        if images is None:
            raise InputError(f"{root}: has no folder amos22/imagesTr/ or imagesTr/")
        base = images.parent
        training, test = (_cases(base, split, variant) for split in ("Tr", "Va"))
        return Catalogue(
            root=root,
            task=Task(_ORGANS, tuple(_VALUES[1:]), True, 1, (_MODALITIES[variant],)),
            raters=("",),
            splits=official_splits(training, None, test, validation_fraction),
            notes=(
                "test is the official validation set; the official test set has no public labels",
            ),
        )


def _cases(base: Path, split: str, variant: str) -> tuple[Case, ...]:
    """The scans of imagesTr/ or imagesVa/ of the wanted kind, each with its labels."""
    images, labels = (
        {
            name: path
            for name, path in files_by_stem(base / f"{kind}{split}", SUFFIXES).items()
            if (match := _SCAN.fullmatch(name)) and _wanted(int(match[1]), variant)
        }
        for kind in ("images", "labels")
    )
    values = {value: value for value in _VALUES}
    cases = tuple(
        Case(name, (image,), ((MaskFile(mask, values),),))
        for name, (image, mask) in paired(images, labels).items()
    )
    if not cases:
        kind = {"ct": "CT scan (number up to 500)", "mr": "MR scan (number above 500)"}
        raise InputError(f"{base / f'images{split}'}: no {kind.get(variant, 'scan amos_<number>')}")
    return cases


def _wanted(number: int, variant: str) -> bool:
    return variant == "ct+mr" or (number <= _LAST_CT) == (variant == "ct")
