"""Which cases belong together: photographs of one patient, tiles of one slide, scans of one head.

They are alike, so a model that has trained on one of them is not tested by another, and n of them
say less about a mean than n patients do.
"""

import csv
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from medsegdiff_jax import atomic
from medsegdiff_jax.types import InputError

FILE = "groups.csv"
_COLUMNS = ("name", "group")


def read_groups(folders: Iterable[str | os.PathLike], cases: Collection[str]) -> dict[str, str]:
    """Case -> its group, as `groups.csv` in some folders say; {} without such a file.

    Args:
      folders: where they would be.
      cases: those that must be in one of them. They may name more.

    Raises:
      InputError: a file has no columns "name" (of a case) and "group", lacks a case's group, is not
        UTF-8, or has a case twice; a case is in none of the files, or has two groups.
    """
    paths = [Path(folder) / FILE for folder in folders]
    present = [path for path in paths if path.is_file()]
    groups: dict[str, str] = {}
    for path in present:
        for case, group in _read(path).items():
            if groups.setdefault(case, group) != group:
                raise InputError(
                    f"{path}: group of case {case} is {group}, elsewhere {groups[case]}"
                )
    missing = [case for case in cases if case not in groups] if present else []
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        where = " and ".join(map(str, present))
        bare = "".join(f"; there is no {path}" for path in paths if path not in present)
        raise InputError(f"{where}: has no line for case {missing[0]}{more}{bare}")
    return groups


def _read(path: Path) -> dict[str, str]:
    """Case -> its group, in one file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error
    groups: dict[str, str] = {}
    for number, row in rows:
        case, group = ((row.get(column) or "").strip() for column in _COLUMNS)
        if not case or not group:
            raise InputError(f"{path}: line {number}: no name or no group (line 1 is name,group)")
        if case in groups:
            raise InputError(f"{path}: has case {case} twice")
        groups[case] = group
    return groups


def write_groups(folder: Path, groups: Mapping[str, str]) -> None:
    """Writes what `read_groups` reads."""
    rows = [dict(zip(_COLUMNS, pair, strict=True)) for pair in groups.items()]
    atomic.write_csv(folder / FILE, rows)
