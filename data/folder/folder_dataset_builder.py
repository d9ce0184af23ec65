"""TFDS builder for the user's own folder: pictures with masks, or NIfTI volumes with labels."""

from pathlib import Path

from data.builder import SegmentationBuilder
from data.catalogue import Catalogue
from data.folder.decathlon import decathlon_catalogue
from data.folder.index import picture_catalogue


class Builder(SegmentationBuilder):
    """A folder of pictures (images/, masks/) or of volumes (imagesTr/, labelsTr/, dataset.json)."""

    name = "folder"
    description = "A folder of images, or volumes, and masks."
    instructions = "It has images/ and masks/, or imagesTr/, labelsTr/ and dataset.json."

    @classmethod
    def catalogue(cls, root: Path, variant: str, validation_fraction: float) -> Catalogue:
        """See README.md for what is accepted."""
        if (root / "imagesTr").is_dir():
            return decathlon_catalogue(root, validation_fraction)
        return picture_catalogue(root, validation_fraction)
