"""TFDS builder of REFUGE 2: optic disc and cup in fundus photographs."""

from pathlib import Path

from data.builder import SegmentationBuilder
from data.catalogue import Case, Catalogue, MaskFile, names
from data.layout import find_folder, missing_splits, official_splits, pictures, subfolders
from data.pairing import paired
from medsegdiff_jax.types import InputError, Task

TASK = Task(classes=("disc", "cup"), label_values=(1, 2), exclusive=False, image_channels=3)
# Consensus: the cup lies in the disc, 128 is the rim between them.
CONSENSUS = {255: 0, 128: 1, 0: 1 + 2}
# Raters: a file per region, 0 outside.
DISC = {0: 0, 1: 1, 255: 1}
CUP = {0: 0, 1: 2, 255: 2}
RATERS = tuple(f"rater_{number}" for number in range(1, 8))

IMAGE_SUFFIXES = (".jpg", ".jpeg")
MASK_SUFFIXES = (".bmp", ".png")
# Of each split, folders of images with their folders of masks, in the three ways the organisers
# packed them: 2018's archives, and those of REFUGE2 for its challenge and later.
LAYOUTS = {
    "train": (
        ("Training400", "Annotation-Training400/Disc_Cup_Masks"),
        ("REFUGE-Training400/Training400", "Annotation-Training400/Disc_Cup_Masks"),
        ("REFUGE-Training400", "Annotation-Training400/Disc_Cup_Masks"),
        ("REFUGE1-train/Training400", "REFUGE1-train/Disc_Cup_Masks"),
        ("REFUGE1-Train-400/Images", "REFUGE1-Train-400/Annotation-Training400/Disc_Cup_Masks"),
    ),
    "validation": (
        ("REFUGE-Validation400", "REFUGE-Validation400-GT/Disc_Cup_Masks"),
        ("REFUGE1-val/REFUGE-Validation400", "REFUGE1-val/Disc_Cup_Masks"),
        (
            "REFUGE1-Val-400/REFUGE-Validation400",
            "REFUGE1-Val-400/REFUGE-Validation400-GT/Disc_Cup_Masks",
        ),
    ),
    "test": (
        ("Test400", "REFUGE-Test-GT/Disc_Cup_Masks"),
        ("REFUGE-Test400/Test400", "REFUGE-Test-GT/Disc_Cup_Masks"),
        ("REFUGE-Test400", "REFUGE-Test-GT/Disc_Cup_Masks"),
        ("REFUGE1-test/Test400", "REFUGE1-test/Disc_Cup_Masks"),
        ("REFUGE1-Test-400/Images", "REFUGE1-Test-400/Annotation/Disc_Cup_Masks"),
    ),
}
INSIDE = ("Train", "REFUGE2", "REFUGE2/Train", "REFUGE2-Training", "REFUGE")
INSIDE_MULTIRATER = ("REFUGE-MultiRater",)


class Builder(SegmentationBuilder):
    """REFUGE 2: optic disc and cup in fundus photographs (see README.md)."""

    name = "refuge2"
    description = (
        "Fundus photographs with optic disc and cup, by consensus of glaucoma specialists or by "
        "seven of them one by one."
    )
    homepage = "https://refuge.grand-challenge.org"
    licence = "terms of the REFUGE challenge: research only"
    instructions = (
        "Download REFUGE2 from https://refuge.grand-challenge.org, or for data.variant=multirater "
        "https://huggingface.co/datasets/realslimman/REFUGE-MultiRater, and unpack it."
    )
    variants = ("refuge2", "multirater")

    @classmethod
    def catalogue(cls, root: Path, variant: str, validation_fraction: float) -> Catalogue:
        """The official splits, as far as their folders are there."""
        if variant == "multirater":
            return _multirater(root, validation_fraction)
        found = {split: _cases(root, split) for split in LAYOUTS}
        if found["train"] is None:
            choices = (f"{images}/ with {masks}/" for images, masks in LAYOUTS["train"])
            raise InputError(f"{root}: needs one of {names(choices)}")
        folders = {
            split: f"{choices[0][0]}/ with {choices[0][1]}/" for split, choices in LAYOUTS.items()
        }
        return Catalogue(
            root=root,
            task=TASK,
            raters=("",),
            splits=official_splits(**found, fraction=validation_fraction),
            notes=missing_splits(found, folders),
        )


def _cases(root: Path, split: str) -> tuple[Case, ...] | None:
    """Cases of an official set; None if the images or the masks are not there."""
    for layout in LAYOUTS[split]:
        images, masks = (find_folder(root, path, inside=INSIDE) for path in layout)
        if images is None or masks is None:
            continue
        # Some sets are divided into folders of patients with and without glaucoma.
        pairs = paired(
            pictures(images, IMAGE_SUFFIXES, nested=True),
            pictures(masks, MASK_SUFFIXES, nested=True),
        )
        return tuple(
            Case(stem, (image,), ((MaskFile(mask, CONSENSUS),),))
            for stem, (image, mask) in pairs.items()
        )
    return None


def _multirater(root: Path, validation_fraction: float) -> Catalogue:
    train, test = (
        find_folder(root, name, inside=INSIDE_MULTIRATER) for name in ("Training-400", "Test-400")
    )
    if train is None:
        raise InputError(f"{root}: has no folder Training-400/")
    return Catalogue(
        root=root,
        task=TASK,
        raters=RATERS,
        splits=official_splits(
            train=_rated(train),
            validation=None,
            test=_rated(test) if test else None,
            fraction=validation_fraction,
        ),
        notes=() if test else ("no Test-400/: the test set is empty",),
    )


def _rated(folder: Path) -> tuple[Case, ...]:
    """One case per folder <id>/: <id>.jpg and <id>_seg_{cup,disc}_{1..7}.png."""
    cases = tuple(_rated_case(below) for below in subfolders(folder))
    if not cases:
        raise InputError(f"{folder}: has no folder <id>/ with <id>.jpg")
    return cases


def _rated_case(folder: Path) -> Case:
    case = folder.name
    images, masks = pictures(folder, IMAGE_SUFFIXES), pictures(folder, (".png",))
    if case not in images:
        raise InputError(f"{folder}: has no {case}.jpg")
    wanted = [
        (f"{case}_seg_disc_{number}", f"{case}_seg_cup_{number}")
        for number in range(1, len(RATERS) + 1)
    ]
    missing = [f"{stem}.png" for pair in wanted for stem in pair if stem not in masks]
    if missing:
        raise InputError(f"{folder}: has no {names(missing)}")
    return Case(
        id=case,
        images=(images[case],),
        raters=tuple(
            (MaskFile(masks[disc], DISC), MaskFile(masks[cup], CUP)) for disc, cup in wanted
        ),
    )
