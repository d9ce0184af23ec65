"""TFDS builder of ISIC 2018 task 1: lesions in dermoscopic images."""

from pathlib import Path

from data.builder import SegmentationBuilder
from data.catalogue import Case, Catalogue, MaskFile
from data.layout import find_folder, missing_splits, official_splits, pictures
from data.pairing import paired
from medsegdiff_jax.types import InputError, Task

TASK = Task(classes=("lesion",), label_values=(1,), exclusive=True, image_channels=3)
VALUES = {0: 0, 255: 1}
IMAGE_SUFFIXES = (".jpg", ".jpeg")  # *_superpixels.png of some mirrors are no images
MASK_SUFFIXES = ("_segmentation.png",)
OFFICIAL = {"train": "Training", "validation": "Validation", "test": "Test"}


class Builder(SegmentationBuilder):
    """ISIC 2018 task 1: lesions in dermoscopic images (see README.md)."""

    name = "isic2018"
    description = "Dermoscopic images and the outline of the lesion: task 1 of the 2018 challenge."
    homepage = "https://challenge.isic-archive.com/data/#2018"
    licence = "CC0 1.0"
    instructions = (
        "Download the input and the ground truth of ISIC 2018 task 1 from "
        "https://challenge.isic-archive.com/data/#2018 and unpack all six archives into one folder."
    )

    @classmethod
    def catalogue(cls, root: Path, variant: str, validation_fraction: float) -> Catalogue:
        """The official splits, as far as their folders are there."""
        found = {split: _cases(root, official) for split, official in OFFICIAL.items()}
        if found["train"] is None:
            images, masks = _folders("Training")
            raise InputError(f"{root}: needs the folders {images}/ and {masks}/")
        folders = {
            split: " or ".join(f"{name}/" for name in _folders(official))
            for split, official in OFFICIAL.items()
        }
        return Catalogue(
            root=root,
            task=TASK,
            raters=("",),
            splits=official_splits(**found, fraction=validation_fraction),
            notes=missing_splits(found, folders),
        )


def _folders(official: str) -> tuple[str, str]:
    return f"ISIC2018_Task1-2_{official}_Input", f"ISIC2018_Task1_{official}_GroundTruth"


def _cases(root: Path, official: str) -> tuple[Case, ...] | None:
    """Cases of an official set; None if the images or the masks are not there."""
    images, masks = (find_folder(root, name, inside=("isic2018",)) for name in _folders(official))
    if images is None or masks is None:
        return None
    pairs = paired(pictures(images, IMAGE_SUFFIXES), pictures(masks, MASK_SUFFIXES))
    return tuple(
        Case(stem, (image,), ((MaskFile(mask, VALUES),),)) for stem, (image, mask) in pairs.items()
    )
