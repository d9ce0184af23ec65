"""What a dataset consists of, by file names alone; every builder ends in a `Catalogue`."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medsegdiff_jax.types import InputError, Task

SPLITS = ("train", "validation", "test")
CLASS_FILE = "dataset.json"  # names of the classes, of pictures and of volumes
MAX_LABEL = 65535  # labels are stored as uint16
TEST_FRACTION = 0.2  # of labelled cases without an official test set


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
        annotation; () of a rater who has not annotated this case, but not of all.
      group: what it shares with other cases, of one patient say; "" if nothing is known.
    """

    id: str
    images: tuple[Path, ...]
    raters: tuple[tuple[MaskFile, ...], ...]
    group: str = ""

    @property
    def annotations(self) -> tuple[tuple[MaskFile, ...], ...]:
        """The files of those raters who have annotated the case."""
        return tuple(files for files in self.raters if files)

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


def share(
    ids: Iterable[str], fraction: float, group_of: Mapping[str, str] | None = None
) -> tuple[list[str], list[str]]:
    """(kept, taken): `fraction` of the groups of ids, by a hash of the group's name alone.

    At least one group is taken and one kept if there are two and the fraction is above 0.

    Args:
      ids: of the cases.
      fraction: in [0, 1).
      group_of: id -> group; an id that is not in it is a group of its own.
    """
    ids = list(ids)
    group_of = {one: (group_of or {}).get(one, one) for one in ids}
    order = _by_hash(group_of.values())
    count = round(len(order) * fraction)
    if fraction > 0 and len(order) > 1:
        count = min(max(count, 1), len(order) - 1)
    taken = set(order[:count])
    kept = [one for one in ids if group_of[one] not in taken]
    return kept, [one for one in ids if group_of[one] in taken]


def _by_hash(groups: Iterable[str]) -> list[str]:
    return sorted(set(groups), key=lambda one: hashlib.sha256(one.encode()).digest())


def share_cases(
    cases: Iterable[Case], fraction: float
) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """`share` of cases, by their ids."""
    by_id = {case.id: case for case in cases}
    kept, taken = share(by_id, fraction)
    return tuple(by_id[one] for one in kept), tuple(by_id[one] for one in taken)


def held_out_splits(cases: Iterable[Case], fraction: float) -> dict[str, tuple[Case, ...]]:
    """Splits of labelled cases without an official test set: a fifth is for testing.

    Args:
      cases: all of them, a patient each.
      fraction: share of the rest for validation.
    """
    rest, test = share_cases(cases, TEST_FRACTION)
    train, validation = share_cases(rest, fraction)
    return {"train": train, "validation": validation, "test": test}


def cross_validation(
    splits: Mapping[str, tuple[Case, ...]], folds: int, fold: int
) -> dict[str, tuple[Case, ...]]:
    """Splits whose training and validation cases together are divided anew; testing stays.

    Of all groups, ordered by the hashes of their names, each fold is a stretch; so every case is in
    one fold, and a group in no two.

    Args:
      splits: of a catalogue.
      folds: number of stretches.
      fold: the one that validates, from 0 on; the others train.

    Raises:
      InputError: there are no such folds, or fewer groups than folds.
    """
    if folds < 2:
        raise InputError(f"data.folds: {folds} is not 0 (no cross-validation) or at least 2")
    if not 0 <= fold < folds:
        raise InputError(f"data.fold: {fold} is not in 0..{folds - 1} (data.folds is {folds})")
    cases = sorted((*splits["train"], *splits["validation"]), key=lambda case: case.id)
    group_of = {case.id: case.group or case.id for case in cases}
    order = _by_hash(group_of.values())
    if len(order) < folds:
        raise InputError(
            f"data.folds: {len(order)} cases, or groups, are too few for {folds} folds"
        )
    first, end = (round(len(order) * bound / folds) for bound in (fold, fold + 1))
    held_out = set(order[first:end])
    return {
        **splits,
        "train": tuple(case for case in cases if group_of[case.id] not in held_out),
        "validation": tuple(case for case in cases if group_of[case.id] in held_out),
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
