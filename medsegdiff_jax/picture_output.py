"""Pictures as cases of a prediction: finding them, segmenting them, and what is written of each."""

import dataclasses
import functools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from medsegdiff_jax import display, fusion, imaging
from medsegdiff_jax.result_files import (
    CaseFiles,
    SkipFn,
    choose,
    class_channels,
    files_of,
    growth_of,
    named,
    readable,
)
from medsegdiff_jax.segmenter import CaseResult, Segmenter
from medsegdiff_jax.settings import Settings
from medsegdiff_jax.types import InputError, Task

SUFFIX = ".png"

_log = logging.getLogger("medsegdiff_jax")


def find(
    source: str | os.PathLike, chosen: str | os.PathLike | None, task: Task
) -> dict[str, tuple[Path, ...]]:
    """Case id (stem) -> image file of a file, a folder, or a folder with `images/` in it.

    Args:
      source: what to look at.
      chosen: text file with one stem per line; only these, in this order.
      task: of the model; any pictures will do.

    Raises:
      InputError: nothing there, no image in it, two images with one stem, or a chosen case that
        does not exist; names it.
    """
    del task
    paths = files_of(Path(source), ("images",), imaging.IMAGE_SUFFIXES)
    cases: dict[str, tuple[Path, ...]] = {}
    for path in paths:
        if path.stem in cases:
            raise InputError(f"{path} and {cases[path.stem][0]}: two images with one name")
        cases[path.stem] = (path,)
    return choose(cases, chosen)


def segment(
    segmenter: Segmenter,
    cases: dict[str, tuple[Path, ...]],
    settings: Settings,
    save: Sequence[str],
    skip: SkipFn,
) -> Iterator[CaseFiles]:
    """Segments pictures batch by batch; those that cannot be read go to `skip`.

    Raises:
      InputError: an image that does not fit the model; what was yielded stays right.
    """

    def read(_: str, paths: Sequence[Path]) -> np.ndarray:
        image = imaging.read_image(*paths)
        if imaging.is_turned(*paths):
            _log.warning(
                "%s: its EXIF rotation is not applied; the mask lies as its pixels are stored",
                *paths,
            )
        return image

    images = readable(cases, read, skip)
    keep = {"keep_members": "members" in save, "keep_path": "animation" in save}
    for result in segmenter.stream(images, settings, **keep):
        probable = fusion.decide(result.probability, segmenter.task)
        labels = (result.mask, imaging.mask_to_labels(probable, segmenter.task))
        growth = growth_of(*(int(np.count_nonzero(one)) for one in labels))
        scaled = segmenter.scaled(result.probability, settings)
        result = dataclasses.replace(result, probability=scaled)
        yield _case(result, growth, segmenter.task, save)


def _case(result: CaseResult, growth: float, task: Task, save: Sequence[str]) -> CaseFiles:
    """What is written of a result, whose probability has been scaled."""
    arrays: dict[str, list[np.ndarray]] = {}
    shown = display.to_rgb(result.image)
    if "mask" in save:
        arrays["mask"] = [result.mask]
    if "probability" in save:
        arrays["probability"] = [
            display.to_byte(result.probability[..., channel]) for _, channel in class_channels(task)
        ]
    if "uncertainty" in save:
        arrays["uncertainty"] = [display.to_byte(result.uncertainty)]
    if "overlay" in save:
        regions = display.regions_of(result.mask, task)
        arrays["overlay"] = [display.overlay(shown, regions, result.uncertainty)]
    if "members" in save:
        arrays["members"] = list(result.members)
    writers = {
        what: [functools.partial(imaging.write_png, array=array) for array in parts]
        for what, parts in arrays.items()
    }
    if "animation" in save:
        frames = display.animation(shown, result.path, task)
        writers["animation"] = [functools.partial(imaging.write_gif, frames=frames)]
    answers = (result.mask, result.probability, result.uncertainty)
    return CaseFiles(
        case_id=result.case_id,
        seconds=result.seconds,
        members=result.fused_members,
        growth=growth,
        pictures=display.case_pictures(result.case_id, shown, *answers, task),
        writers=named(result.case_id, writers, task, SUFFIX),
    )
