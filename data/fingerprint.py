"""Contents of files -> the name under which their prepared form is kept."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from data.catalogue import Catalogue, names
from medsegdiff_jax import atomic
from medsegdiff_jax.progress import progress


def digests(catalogue: Catalogue, memo: Path, threads: int) -> dict[Path, str]:
    """SHA-256 of every file of the catalogue.

    Hashing reads every file; the result is remembered in the folder `memo` for as long as names,
    sizes and modification times stay what they were.
    """
    files = [path for case in catalogue.cases for path in case.files]
    files = list(dict.fromkeys((*files, *catalogue.extra_files)))
    listing = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    note = memo / f"{hash_tree(listing)[:32]}.json"
    if note.is_file():
        found = json.loads(note.read_text())
    else:
        with ThreadPoolExecutor(threads) as pool:
            work = pool.map(_digest, files)
            found = list(progress(work, len(files), "hashing", "file"))
        atomic.write_text(note, json.dumps(found))
    return dict(zip(files, found, strict=True))


def fingerprint(
    catalogue: Catalogue, contents: Mapping[Path, str], settings: Mapping[str, Any]
) -> str:
    """16 hex digits over the names and contents of all files, the splits and the settings."""
    files = [
        [str(path.relative_to(catalogue.root)), digest]
        if path.is_relative_to(catalogue.root)
        else [str(path), digest]
        for path, digest in contents.items()
    ]
    splits = {split: [case.id for case in cases] for split, cases in catalogue.splits.items()}
    return hash_tree([files, splits, dict(settings)])[:16]


def leaks(catalogue: Catalogue, contents: Mapping[Path, str]) -> tuple[str, ...]:
    """Lines for the report if the same image file, or cases of one group, lie in two splits."""
    owner: dict[str, tuple[str, Path]] = {}
    found = []
    splits_of: dict[str, dict[str, None]] = {}
    for split, cases in catalogue.splits.items():
        for case in cases:
            digest = hash_tree([contents[path] for path in case.images])
            other, first = owner.setdefault(digest, (split, case.images[0]))
            if other != split:
                found.append(f"{first} ({other}) = {case.images[0]} ({split})")
            if case.group:
                splits_of.setdefault(case.group, {})[split] = None
    apart = [f"{one} ({', '.join(of)})" for one, of in splits_of.items() if len(of) > 1]
    notes = {"the same image in two splits": found, "a group in two splits": apart}
    return tuple(f"{what}: {names(where)}" for what, where in notes.items() if where)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(tree: Any) -> str:
    """SHA-256, 64 hex digits, of what JSON can say."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
