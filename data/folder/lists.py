"""Splits of a folder: the user's train.txt, val.txt and test.txt, or a hash of the names.

Cases of one group (`groups.csv`, a patient's say) are never drawn apart.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from data.catalogue import names, share
from medsegdiff_jax import groups
from medsegdiff_jax.imaging import IMAGE_SUFFIXES, read_names
from medsegdiff_jax.types import InputError
from medsegdiff_jax.volumes import SUFFIXES as VOLUME_SUFFIXES

LISTS = {
    "train": ("train.txt",),
    "validation": ("val.txt", "validation.txt"),
    "test": ("test.txt",),
}
FILES = (*(name for candidates in LISTS.values() for name in candidates), groups.FILE)
"""All that may say which case is in which split."""

_TEST_FRACTION = 0.1  # where there is no list


def read_lists(
    root: Path, known_ids: Collection[str], images: str = "images/"
) -> dict[str, list[str]]:
    """Reads the lists below `root` that exist: split -> case ids, in the order of the list.

    Args:
      root: the folder of the lists.
      known_ids: of all cases.
      images: where these come from, for the message.

    Raises:
      InputError: an unknown or repeated case, or two lists for one split.
    """
    lists: dict[str, list[str]] = {}
    owner: dict[str, str] = {}
    for split, candidates in LISTS.items():
        present = [root / name for name in candidates if (root / name).is_file()]
        if len(present) > 1:
            raise InputError(f"{root}: has both {present[0].name} and {present[1].name}")
        for path in present:
            lists[split] = ids = [_id(name, known_ids) for name in read_names(path)]
            missing = [one for one in ids if one not in known_ids]
            if missing:
                raise InputError(
                    f"{path}: no image in {images} for {names(missing)}; a case is called "
                    f"{min(known_ids)!r}, say"
                )
            for one in ids:
                if one in owner:
                    raise InputError(f"{path}: case {one} is already listed in {owner[one]}")
                owner[one] = path.name
    return lists


def _id(name: str, known_ids: Collection[str]) -> str:
    """The case of a name in a list, which may be that of its file."""
    if name not in known_ids:
        for suffix in (*IMAGE_SUFFIXES, *VOLUME_SUFFIXES):
            if name.lower().endswith(suffix) and name[: -len(suffix)] in known_ids:
                return name[: -len(suffix)]
    return name


def assign(
    lists: Mapping[str, list[str]],
    ids: Sequence[str],
    validation_fraction: float,
    group_of: Mapping[str, str],
) -> dict[str, list[str]]:
    """Split -> case ids: the lists where given, the rest by a hash of the group, or else the id.

    Without lists: a tenth of the groups for testing and `validation_fraction` of all for
    validation. With lists but none for validation: `validation_fraction` of the training groups.
    Without a training list, these are the cases that no list names.
    """
    if not lists:
        rest, test = share(ids, _TEST_FRACTION, group_of)
        train, validation = share(rest, validation_fraction / (1 - _TEST_FRACTION), group_of)
        return {"train": train, "validation": validation, "test": test}
    listed = {one for split in lists.values() for one in split}
    splits = dict(lists)
    if "train" not in splits:
        splits["train"] = [one for one in ids if one not in listed]
    if "validation" not in splits:
        splits["train"], splits["validation"] = share(
            splits["train"], validation_fraction, group_of
        )
    splits.setdefault("test", [])
    return {split: splits[split] for split in LISTS}
