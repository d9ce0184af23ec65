"""TFDS builder of TNMIX: thyroid nodules of TN-SCUI 2020 and DDTI."""

from pathlib import Path

from data.builder import SegmentationBuilder
from data.catalogue import Case, Catalogue, MaskFile, held_out_splits
from data.layout import find_folder, pictures
from data.pairing import paired
from medsegdiff_jax.types import InputError, Task

TASK = Task(classes=("nodule",), label_values=(1,), exclusive=True, image_channels=1)
# A 1-bit PNG, which some programs write for a mask of 0 and 255, is read as 0 and 1.
VALUES = {0: 0, 1: 1, 255: 1}
SUFFIXES = (".png",)
# Prefix of the ids -> where the folders image/ and mask/ of the source may lie.
SOURCES = {
    "tnscui": ("TNSCUI2020_train", "TNSCUI2020/TNSCUI2020_train"),
    "ddti": ("DDTI/1_or_data", "1_or_data"),
}


class Builder(SegmentationBuilder):
    """TNMIX: thyroid nodules of TN-SCUI 2020 and DDTI (see README.md)."""

    name = "tnmix"
    description = "Ultrasound images of thyroid nodules from TN-SCUI 2020 and DDTI together."
    homepage = "https://tn-scui2020.grand-challenge.org"
    licence = "TN-SCUI 2020: terms of the challenge, not to be passed on; DDTI: open access"
    instructions = (
        "Put TNSCUI2020_train/ (https://tn-scui2020.grand-challenge.org) and DDTI/1_or_data/ "
        "(https://github.com/WAMAWAMA/TNSCUI2020-Seg-Rank1st) into one folder."
    )

    @classmethod
    def catalogue(cls, root: Path, variant: str, validation_fraction: float) -> Catalogue:
        """Both sources, each split by a hash of the file name."""
        folders = {source: find_folder(root, *paths) for source, paths in SOURCES.items()}
        missing = [f"{SOURCES[source][0]}/" for source, path in folders.items() if path is None]
        if missing:
            raise InputError(
                f"{root}: has no folder {' and no '.join(missing)}; TNMIX is made of both"
            )
        splits: dict[str, tuple[Case, ...]] = {"train": (), "validation": (), "test": ()}
        notes = ["split by image: the patients are not published"]
        for source, folder in folders.items():
            cases = _cases(folder, source)
            notes.append(f"{source} {len(cases)} images")
            # Each source on its own, so that both are in every split in the same proportion.
            for split, part in held_out_splits(cases, validation_fraction).items():
                splits[split] += part
        return Catalogue(
            root=root,
            task=TASK,
            raters=("",),
            splits={split: tuple(sorted(part, key=_id)) for split, part in splits.items()},
            notes=tuple(notes),
        )


def _cases(folder: Path, source: str) -> tuple[Case, ...]:
    images, masks = (pictures(folder / name, SUFFIXES) for name in ("image", "mask"))
    return tuple(
        Case(f"{source}_{stem}", (image,), ((MaskFile(mask, VALUES),),))
        for stem, (image, mask) in paired(images, masks).items()
    )


def _id(case: Case) -> str:
    return case.id
