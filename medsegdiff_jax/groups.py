"""Which cases belong together: photographs of one patient, tiles of one slide, scans of one head.

They are alike, so a model that has trained on one of them is not tested by another, and n of them
say less about a mean than n patients do.
"""

import csv
from collections.abc import Collection, Mapping
from pathlib import Path

from medsegdiff_jax import atomic
from medsegdiff_jax.types import InputError

FILE = "groups.csv"
_COLUMNS = ("name", "group")


def read_groups(folder: Path, cases: Collection[str]) -> dict[str, str]:
    """Case -> its group, as `groups.csv` in a folder says; {} without that file.

    Args:
      folder: where it would be.
      cases: those that must be in it. It may name more.

    Raises:
      InputError: it has no columns "name" (of a case) and "group", lacks a case or a case's group,
        has a case twice, or is not UTF-8.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
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
    missing = [case for case in cases if case not in groups]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{path}: has no line for case {missing[0]}{more}")
    return groups


def write_groups(folder: Path, groups: Mapping[str, str]) -> None:
    """Writes what `read_groups` reads."""
    rows = [dict(zip(_COLUMNS, pair, strict=True)) for pair in groups.items()]
    atomic.write_csv(folder / FILE, rows)
