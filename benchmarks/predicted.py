"""Files of a case, for the figures that show what was predicted."""

from pathlib import Path

from medsegdiff_jax.types import InputError


def picture(folder: Path, case: str, suffix: str = "") -> Path:
    """The file of a case, whatever its kind of picture.

    Raises:
      InputError: there is none, or several.
    """
    found = [path for path in folder.iterdir() if path.stem == case + suffix]
    if len(found) != 1:
        raise InputError(f"{folder}: {len(found)} files named {case}{suffix}, not 1")
    return found[0]
