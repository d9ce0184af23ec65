"""Which pictures and masks of a folder make which case and split, by names alone."""

from collections.abc import Sequence
from pathlib import Path

from data.catalogue import CLASS_FILE, MAX_LABEL, Case, Catalogue, MaskFile, names, read_json
from data.folder.lists import FILES, assign, read_lists
from medsegdiff_jax.groups import read_groups
from medsegdiff_jax.imaging import IMAGE_SUFFIXES, files_by_stem, rater_folders
from medsegdiff_jax.types import InputError, Task


def picture_catalogue(root: Path, validation_fraction: float) -> Catalogue:
    """Pairs the pictures of a folder with their masks and splits the cases.

    `lists.assign` says which case is in which split.

    Raises:
      InputError: folder or images missing, mask without image, training or validation image
        without mask, a list entry without image, a case listed twice, or a dataset.json that makes
        no sense.
    """
    images = _images(root)
    raters = _masks(root, images)
    lists = read_lists(root, images)
    groups = read_groups([root], images)
    assigned = assign(lists, list(images), validation_fraction, groups)
    annotated = {stem for masks in raters.values() for stem in masks}
    # A public test set may come without masks; it cannot be scored, so it is left out.
    assigned["test"] = [s for s in assigned["test"] if s in annotated or "test" not in lists]
    splits = {
        split: tuple(_case(stem, images[stem], raters, groups.get(stem, "")) for stem in stems)
        for split, stems in assigned.items()
    }
    cases = [case for split in splits.values() for case in split]
    used = {case.id for case in cases}
    unused = [stem for stem in images if stem not in used]
    notes = (f"{len(unused)} images in no split: {names(unused)}",) if unused else ()
    declared = root / CLASS_FILE
    extra = [declared, *(root / name for name in FILES)]
    return Catalogue(
        root=root,
        task=_declared_task(declared) if declared.is_file() else None,
        raters=tuple(raters),
        splits=splits,
        notes=notes + _unrated(cases, tuple(raters)),
        extra_files=tuple(path for path in extra if path.is_file()),
    )


def _images(root: Path) -> dict[str, Path]:
    if not (root / "images").is_dir():
        raise InputError(f"{root}: has no folder images/ (or imagesTr/ of volumes)")
    images = files_by_stem(root / "images", IMAGE_SUFFIXES)
    if not images:
        raise InputError(f"{root / 'images'}: no image ({', '.join(IMAGE_SUFFIXES)})")
    return images


def _masks(root: Path, images: dict[str, Path]) -> dict[str, dict[str, Path]]:
    """Rater name -> stem -> mask file; `masks_<rater>/` folders take precedence over `masks/`."""
    raters = {
        name: files_by_stem(path, IMAGE_SUFFIXES) for name, path in rater_folders(root).items()
    }
    if not raters:
        if not (root / "masks").is_dir():
            raise InputError(f"{root}: has neither masks/ nor masks_<rater>/")
        raters = {"": files_by_stem(root / "masks", IMAGE_SUFFIXES)}
    for masks in raters.values():
        orphans = [path for stem, path in masks.items() if stem not in images]
        if orphans:
            raise InputError(f"mask without image: {names(orphans)}")
    return raters


def _unrated(cases: Sequence[Case], raters: Sequence[str]) -> tuple[str, ...]:
    """A note for each rater who has not annotated all cases."""
    notes = []
    for index, rater in enumerate(raters):
        missing = [case.id for case in cases if not case.raters[index]]
        if missing:
            notes.append(
                f"masks_{rater}/ has no mask of {len(missing)} of {len(cases)} images: "
                f"{names(missing)}"
            )
    return tuple(notes)


def _case(stem: str, image: Path, raters: dict[str, dict[str, Path]], group: str) -> Case:
    given = tuple((MaskFile(masks[stem]),) if stem in masks else () for masks in raters.values())
    if not any(given):
        raise InputError(f"image without mask: {image}")
    return Case(stem, (image,), given, group)


def _declared_task(path: Path) -> Task:
    """Classes and values of `dataset.json`; how many channels, the images will say."""
    fields = read_json(path)
    try:
        classes, exclusive = dict(fields["classes"]), fields.get("exclusive", True)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f'{path}: needs {{"classes": {{"name": label value, ...}}}}') from error
    if not isinstance(exclusive, bool):
        raise InputError(f"{path}: exclusive is true or false, not {exclusive!r}")
    values = tuple(classes.values())
    known = all(type(value) is int and 1 <= value <= MAX_LABEL for value in values)
    if not values or not known or len(set(values)) < len(values):
        raise InputError(f"{path}: label values must be different integers in 1..{MAX_LABEL}")
    if not exclusive and any(value & (value - 1) for value in values):
        raise InputError(f"{path}: overlapping regions need powers of two as label values")
    return Task(tuple(classes), values, exclusive, 0)
