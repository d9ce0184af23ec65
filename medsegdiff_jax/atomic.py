"""Files that appear whole or not at all; JSON and CSV."""

import contextlib
import csv
import fcntl
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# mkstemp makes private files. The mask can only be read by setting it, which is not for threads.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place if the block ends well.

    Raises:
      OSError: it cannot be written; names `path`. Of another file that the block reads, as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_UMASK)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename not in (None, name, temporary):
            raise
        # A full disk is found out by a write, which knows no file name.
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes text as UTF-8, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, tree: Any) -> None:
    """Writes strict JSON (NaN and infinity become null), indented, all or nothing."""
    text = json.dumps(_finite(tree), indent=2, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file in UTF-8 holds, whatever the locale.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not JSON.
    """
    return json.loads(Path(path).read_text("utf-8"))


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the same keys as CSV with a header, all or nothing; NaN stays "nan"."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


@contextlib.contextmanager
def alone(folder: str | os.PathLike) -> Iterator[None]:
    """One process at a time is in the block, if the file system locks folders (NFS does not)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)  # and unlocks


def _finite(tree: Any) -> Any:
    """Replaces numpy numbers by Python's and non-finite floats by None, recursively."""
    if isinstance(tree, Mapping):
        return {str(key): _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    if isinstance(tree, np.generic | np.ndarray):
        return _finite(tree.tolist())
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree
