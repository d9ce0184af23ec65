"""Images and their masks, found in two folders under one name."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from data.catalogue import names
from medsegdiff_jax.types import InputError

Images = TypeVar("Images", Path, tuple[Path, ...])


def paired(
    images: Mapping[str, Images], masks: Mapping[str, Path]
) -> dict[str, tuple[Images, Path]]:
    """Case id -> (image or images, mask), in the order of the images.

    Raises:
      InputError: an image without mask or a mask without image; names the files.
    """
    orphans = [mask for one, mask in masks.items() if one not in images]
    if orphans:
        raise InputError(f"mask without image: {names(orphans)}")
    bare = [files for one, files in images.items() if one not in masks]
    if bare:
        first = (files[0] if isinstance(files, tuple) else files for files in bare)
        raise InputError(f"image without mask: {names(first)}")
    return {one: (files, masks[one]) for one, files in images.items()}
