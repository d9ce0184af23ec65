"""What a dataset consists of, by file names alone; every builder ends in a `Catalogue`."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medsegdiff_jax.types import InputError, Task

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class MaskFile:
    """A file of labels.

    Attributes:
      path: a picture or a NIfTI volume.
      values: label in the file -> label of the task, 0 included; other labels are refused. None if
        the file already holds the task's labels.
    """

    path: Path
    values: Mapping[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """One image, or one volume, and its annotations.

    Attributes:
      id: unique in the dataset.
      images: one picture; or the modalities of a volume, a NIfTI file each or one file with all.
      raters: of each rater, in a fixed order, the files whose labels together (bitwise or) are the
        annotation.
    """

    id: str
    images: tuple[Path, ...]
    raters: tuple[tuple[MaskFile, ...], ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is read for the case."""
        return (*self.images, *(mask.path for rater in self.raters for mask in rater))


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The cases of a dataset.

    Attributes:
      root: the folder.
      task: what is segmented; None if that must be learnt from the labels. Pictures are converted
        to its `image_channels`; 0 stands for the most that any of them has.
      raters: names, in the order of `Case.raters`; ("",) for a single annotation.
      splits: split name -> cases, in order.
      notes: lines for the report, e.g. which files are not used.
      extra_files: other files that the dataset depends on, such as lists.
    """

    root: Path
    task: Task | None
    raters: tuple[str, ...]
    splits: Mapping[str, tuple[Case, ...]]
    notes: tuple[str, ...] = ()
    extra_files: tuple[Path, ...] = ()

    @property
    def cases(self) -> tuple[Case, ...]:
        """Of all splits."""
        return tuple(case for cases in self.splits.values() for case in cases)


def names(items: Iterable[object], limit: int = 5) -> str:
    """The first few of a list, for a message."""
    items = [str(item) for item in items]
    rest = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + rest


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of a folder by name without suffix, sorted; hidden files and other suffixes left out.

    Raises:
      InputError: no such folder, or two files with one stem.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        suffix = next((s for s in suffixes if path.name.lower().endswith(s)), None)
        if path.name.startswith(".") or suffix is None:
            continue
        stem = path.name[: -len(suffix)]
        if stem in found:
            raise InputError(f"{folder}: {found[stem].name} and {path.name} share a stem")
        found[stem] = path
    return found


def share(groups: Iterable[str], fraction: float) -> tuple[list[str], list[str]]:
    """(kept, taken): `fraction` of the names, by a hash of the name alone.

    At least one is taken and one kept if there are two and the fraction is above 0. To split by
    patient, give patients, not images.
    """
    groups = list(groups)
    count = round(len(groups) * fraction)
    if fraction > 0 and len(groups) > 1:
        count = min(max(count, 1), len(groups) - 1)
    order = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    taken = set(order[:count])
    return [g for g in groups if g not in taken], [g for g in groups if g in taken]


def without_validation(
    cases: Iterable[Case], fraction: float, patient: Mapping[str, str] | None = None
) -> dict[str, tuple[Case, ...]]:
    """Splits training cases into {"train", "validation"} by a hash of the patient.

    Args:
      cases: of the official training set.
      fraction: share of the patients for validation.
      patient: case id -> patient; without it every case is a patient of its own.
    """
    cases = list(cases)
    owner = {case.id: patient[case.id] if patient else case.id for case in cases}
    _, taken = share(dict.fromkeys(owner.values()), fraction)
    chosen = set(taken)
    return {
        "train": tuple(case for case in cases if owner[case.id] not in chosen),
        "validation": tuple(case for case in cases if owner[case.id] in chosen),
    }


def held_out_splits(
    cases: Iterable[Case], fraction: float, test_fraction: float = 0.2
) -> dict[str, tuple[Case, ...]]:
    """Splits labelled cases, a patient each, that come without an official test set.

    Args:
      cases: all of them.
      fraction: share of the rest for validation.
      test_fraction: share for testing, by a hash of the id.
    """
    cases = list(cases)
    _, taken = share((case.id for case in cases), test_fraction)
    chosen = set(taken)
    return {
        **without_validation((case for case in cases if case.id not in chosen), fraction),
        "test": tuple(case for case in cases if case.id in chosen),
    }


def read_json(path: Path) -> Any:
    """The content of a JSON file, with or without a byte order mark.

    Raises:
      InputError: it is neither JSON nor UTF-8.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
