"""A folder of images -> a folder of predictions: what `sample.py` does.

For every case: <case>.png with label ids, and on request its probability, uncertainty, overlay and
members. `run.json` says how all of it was made and lists the cases that are done.
"""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from medsegdiff_jax import imaging, report
from medsegdiff_jax.segmenter import CaseResult, Segmenter, Settings
from medsegdiff_jax.types import InputError, Task
from medsegdiff_jax.version import __version__

SAVE = ("mask", "probability", "uncertainty", "overlay", "members")
SHEET_CASES = 16


def find_images(
    source: str | os.PathLike, chosen: str | os.PathLike | None = None
) -> dict[str, Path]:
    """Case id (stem) -> image file of a file, a folder, or a folder with `images/` in it.

    Args:
      source: what to look at.
      chosen: text file with one stem per line; only these, in this order.

    Raises:
      InputError: nothing there, no image in it, two images with one stem, a file that is no
        image, or a chosen case that does not exist; names it.
    """
    root = Path(source)
    if root.is_file():
        paths = [root]
    elif root.is_dir():
        folder = root / "images" if (root / "images").is_dir() else root
        paths = sorted(
            path for path in folder.iterdir() if path.suffix.lower() in imaging.IMAGE_SUFFIXES
        )
    else:
        raise InputError(f"{source}: no such file or folder")
    if not paths or paths[0].suffix.lower() not in imaging.IMAGE_SUFFIXES:
        raise InputError(f"{source}: no image ({', '.join(imaging.IMAGE_SUFFIXES)})")
    cases: dict[str, Path] = {}
    for path in paths:
        if path.stem in cases:
            raise InputError(f"{path} and {cases[path.stem]}: two images with one name")
        cases[path.stem] = path
    if chosen is not None:
        cases = _choose(cases, Path(chosen))
    for path in cases.values():
        imaging.check_image(path)
    return cases


def _choose(cases: dict[str, Path], chosen: Path) -> dict[str, Path]:
    """The cases that a list names."""
    if not chosen.is_file():
        raise InputError(f"{chosen}: no such list")
    stems = [line.strip() for line in chosen.read_text("utf-8").splitlines() if line.strip()]
    missing = [stem for stem in stems if stem not in cases]
    if missing or not stems:
        raise InputError(f"{chosen}: {missing[0]} has no image" if missing else f"{chosen}: empty")
    return {stem: cases[stem] for stem in stems}


def predict(
    segmenter: Segmenter,
    images: dict[str, Path],
    output: str | os.PathLike,
    settings: Settings,
    save: Sequence[str],
) -> None:
    """Segments `images` and writes each case as soon as its batch is done.

    Args:
      segmenter: the model.
      images: from `find_images`.
      output: folder, made if it is missing.
      settings: from `segmenter.choose`.
      save: some of SAVE.

    Raises:
      InputError: an unreadable image (finished cases stay) or an unknown word in `save`.
    """
    unknown = set(save) - set(SAVE)
    if unknown or not save:
        raise InputError(f"--save: {', '.join(sorted(unknown))!r} is not among {', '.join(SAVE)}")
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    run = describe(segmenter, settings)
    sheet: list[report.CasePictures] = []
    cases = ((name, imaging.read_image(path)) for name, path in images.items())
    results = segmenter.stream(cases, settings, keep_members="members" in save)
    for result, seconds in _timed(tqdm.tqdm(results, total=len(images), unit="case", disable=None)):
        files = write_case(folder, result, segmenter.task, save)
        run["cases"][result.case_id] = {"files": files, "seconds": round(seconds, 4)}
        report.write_json(folder / "run.json", run)
        if len(sheet) < SHEET_CASES:
            sheet.append(
                report.case_pictures(
                    result.case_id,
                    result.image,
                    result.mask,
                    result.probability,
                    result.uncertainty,
                    segmenter.task,
                )
            )
    report.write_contact_sheet(folder / "contact_sheet.png", sheet, segmenter.task)


def describe(segmenter: Segmenter, settings: Settings) -> dict[str, Any]:
    """The head of run.json: everything that the predictions depend on; no case yet."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(segmenter.params)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return {
        "version": __version__,
        "jax": jax.__version__,
        "devices": [device.device_kind for device in jax.devices()],
        "checkpoint": segmenter.description,
        "checkpoint_sha256": digest.hexdigest(),
        "sampling": vars(settings),
        "task": segmenter.task.to_json(),
        "config": segmenter.config.to_dict(),
        "cases": {},
    }


def write_case(
    folder: Path, result: CaseResult, task: Task, save: Sequence[str]
) -> dict[str, str | list[str]]:
    """Writes what `save` names of one case; returns {what: file name or names}."""
    case = result.case_id
    pictures: dict[str, dict[str, np.ndarray]] = {name: {} for name in save}
    if "mask" in save:
        pictures["mask"][f"{case}.png"] = result.mask
    if "probability" in save:
        for suffix, channel in _class_channels(task):
            pictures["probability"][f"{case}_probability{suffix}.png"] = report.to_byte(
                result.probability[..., channel]
            )
    if "uncertainty" in save:
        pictures["uncertainty"][f"{case}_uncertainty.png"] = report.to_byte(result.uncertainty)
    if "overlay" in save:
        regions = report.regions_of(result.mask, task)
        pictures["overlay"][f"{case}_overlay.png"] = report.overlay(
            result.image, regions, result.uncertainty
        )
    if "members" in save:
        for index, member in enumerate(result.members):
            pictures["members"][f"{case}_member_{index:02d}.png"] = member
    for files in pictures.values():
        for name, picture in files.items():
            imaging.write_png(folder / name, picture)
    return {
        what: list(files) if len(files) > 1 else next(iter(files))
        for what, files in pictures.items()
    }


def _class_channels(task: Task) -> list[tuple[str, int]]:
    """(file name suffix, channel of the probability) of every class."""
    if task.mask_channels == 1:
        return [("", 0)]
    return [(f"_{name}", index + task.one_hot) for index, name in enumerate(task.classes)]


def _timed(results: Iterator[CaseResult]) -> Iterator[tuple[CaseResult, float]]:
    """Each result with the seconds since the last; a batch's time falls on its first case."""
    last = time.perf_counter()
    for result in results:
        now = time.perf_counter()
        yield result, now - last
        last = time.perf_counter()
