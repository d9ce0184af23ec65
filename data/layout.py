"""Folders and splits of public datasets as users have them after unpacking."""

from collections.abc import Mapping
from pathlib import Path

from data.catalogue import Case, names, share_cases
from medsegdiff_jax.imaging import files_by_stem
from medsegdiff_jax.types import InputError

ARCHIVE_DEBRIS = "__MACOSX"  # copies of all names, made by the archiver of macOS


def find_folder(root: Path, *paths: str, inside: tuple[str, ...] = ()) -> Path | None:
    """The first of some folders below `root`, or None.

    Upper and lower case are the same, and where an archive made a folder of its own name in itself,
    a/a counts as a.

    Args:
      root: an existing folder.
      *paths: relative to `root`, parts separated by "/".
      inside: folders of `root` in which all paths are looked for too.
    """
    bases = [root, *filter(None, (_descend(root, outer) for outer in inside))]
    found = (_descend(base, path) for path in paths for base in bases)
    return next(filter(None, found), None)


def _descend(folder: Path, path: str) -> Path | None:
    for part in path.split("/"):
        below = _child(folder, part)
        if below is None:
            return None
        folder = _child(below, part) or below
    return folder


def _child(folder: Path, name: str) -> Path | None:
    if (folder / name).is_dir():
        return folder / name
    return next((one for one in subfolders(folder) if one.name.lower() == name.lower()), None)


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without hidden ones."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".") and path.name != ARCHIVE_DEBRIS
    ]


def pictures(folder: Path, suffixes: tuple[str, ...], nested: bool = False) -> dict[str, Path]:
    """`files_by_stem` of a folder, and of the folders in it if `nested`; never empty.

    Raises:
      InputError: no such folder, nothing in it, or two files with one stem.
    """
    found = files_by_stem(folder, suffixes)
    for below in subfolders(folder) if nested else ():
        for stem, path in files_by_stem(below, suffixes).items():
            if stem in found:
                raise InputError(f"{path}: shares a stem with {found[stem]}")
            found[stem] = path
    if not found:
        raise InputError(f"{folder}: no file *{' or *'.join(suffixes)}")
    return dict(sorted(found.items()))


def official_splits(
    train: tuple[Case, ...],
    validation: tuple[Case, ...] | None,
    test: tuple[Case, ...] | None,
    fraction: float,
) -> dict[str, tuple[Case, ...]]:
    """The splits; a validation set that is missing is taken from the training set by hash.

    Args:
      train: official training set.
      validation: official one, None if the user lacks it.
      test: official one, None if the user lacks it.
      fraction: share of the training cases for validation.

    Raises:
      InputError: a case is in two splits.
    """
    if validation is None:
        train, validation = share_cases(train, fraction)
    splits = {"train": train, "validation": validation, "test": test or ()}
    _check_disjoint(splits)
    return splits


def missing_splits(
    found: Mapping[str, tuple[Case, ...] | None], folders: Mapping[str, str]
) -> tuple[str, ...]:
    """A line for the report for each official set but the training set that is not there.

    Args:
      found: split -> its cases, None if the user lacks it.
      folders: split -> where it would be.
    """
    instead = {"validation": "taken from the training set", "test": "empty"}
    return tuple(
        f"no {folders[split]}: the {split} set is {what}"
        for split, what in instead.items()
        if found[split] is None
    )


def _check_disjoint(splits: Mapping[str, tuple[Case, ...]]) -> None:
    owner: dict[str, Path] = {}
    twice = []
    for case in (case for cases in splits.values() for case in cases):
        first = owner.setdefault(case.id, case.images[0])
        if first != case.images[0]:
            twice.append(f"{first} and {case.images[0]}")
    if twice:
        raise InputError(f"one case in two splits: {names(twice)}")
