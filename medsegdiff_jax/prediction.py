"""A folder of images -> a folder of predictions: what `sample.py` does.

For every case: <case>.png with label ids, and on request its probability, uncertainty, overlay and
members. `run.json` says how all of it was made and lists the cases that are done.
"""

import dataclasses
import hashlib
import logging
import os
import sys
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
LOG_SECONDS = 20  # between progress lines where there is no terminal

_log = logging.getLogger("medsegdiff_jax")


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
        files = sorted(path for path in folder.iterdir() if path.is_file())
        paths = [path for path in files if path.suffix.lower() in imaging.IMAGE_SUFFIXES]
        if len(paths) < len(files):
            _log.info("%s: %d files that are no images", folder, len(files) - len(paths))
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
      InputError: an unreadable image (finished cases stay), an unknown word in `save`, or names
        by which a result would replace an image or another result.
    """
    unknown = set(save) - set(SAVE)
    if unknown or not save:
        raise InputError(f"--save: {', '.join(sorted(unknown))!r} is not among {', '.join(SAVE)}")
    folder = Path(output)
    _check_names(images, folder, segmenter.task, save, settings.members)
    folder.mkdir(parents=True, exist_ok=True)
    # A lone image must not be computed as a padded batch of many.
    settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, len(images)))
    run = describe(segmenter, settings)
    sheet: list[report.CasePictures] = []
    cases = ((name, imaging.read_image(path)) for name, path in images.items())
    results = segmenter.stream(cases, settings, keep_members="members" in save)
    report.write_json(folder / "run.json", run)
    try:
        for result in _progress(results, len(images)):
            files = write_case(folder, result, segmenter.task, save)
            run["cases"][result.case_id] = {"files": files, "seconds": round(result.seconds, 4)}
            if len(sheet) < SHEET_CASES:
                sheet.append(_pictures(result, segmenter.task))
    finally:
        # Also when an image was unreadable or the run was interrupted: what is done is listed.
        report.write_json(folder / "run.json", run)
    report.write_contact_sheet(folder / "contact_sheet.png", sheet, segmenter.task)


def _pictures(result: CaseResult, task: Task) -> report.CasePictures:
    """The row of a case in the contact sheet."""
    answers = (result.mask, result.probability, result.uncertainty)
    return report.case_pictures(result.case_id, result.image, *answers, task)


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
    arrays: dict[str, list[np.ndarray]] = {}
    if "mask" in save:
        arrays["mask"] = [result.mask]
    if "probability" in save:
        arrays["probability"] = [
            report.to_byte(result.probability[..., channel]) for _, channel in _class_channels(task)
        ]
    if "uncertainty" in save:
        arrays["uncertainty"] = [report.to_byte(result.uncertainty)]
    if "overlay" in save:
        regions = report.regions_of(result.mask, task)
        arrays["overlay"] = [report.overlay(result.image, regions, result.uncertainty)]
    if "members" in save:
        arrays["members"] = list(result.members)
    pictures = {
        what: dict(zip(_file_names(result.case_id, what, task, len(array)), array, strict=True))
        for what, array in arrays.items()
    }
    for files in pictures.values():
        for name, picture in files.items():
            imaging.write_png(folder / name, picture)
    return {
        what: list(files) if len(files) > 1 else next(iter(files))
        for what, files in pictures.items()
    }


def _file_names(case: str, what: str, task: Task, members: int) -> list[str]:
    """Names of the files that hold `what` (one of SAVE) of a case."""
    if what == "mask":
        return [f"{case}.png"]
    if what == "probability":
        return [f"{case}_probability{suffix}.png" for suffix, _ in _class_channels(task)]
    if what == "members":
        return [f"{case}_member_{index:02d}.png" for index in range(members)]
    return [f"{case}_{what}.png"]


def _check_names(
    images: dict[str, Path], folder: Path, task: Task, save: Sequence[str], members: int
) -> None:
    """Raises InputError if a result would replace an image or another result."""
    owner = {"contact_sheet.png": "the contact sheet"}
    for case in images:
        for what in save:
            for name in _file_names(case, what, task, members):
                if name in owner:
                    raise InputError(
                        f"{images[case]}: its {what} and {owner[name]} would both be {name}"
                    )
                owner[name] = str(images[case])
    for path in images.values():
        if path.name in owner and path.resolve().parent == folder.resolve():
            raise InputError(f"{path}: would be replaced by a result; choose another --output")


def _class_channels(task: Task) -> list[tuple[str, int]]:
    """(file name suffix, channel of the probability) of every class."""
    if task.mask_channels == 1:
        return [("", 0)]
    return [(f"_{name}", index + task.one_hot) for index, name in enumerate(task.classes)]


def _progress(results: Iterator[CaseResult], total: int) -> Iterator[CaseResult]:
    """The results, with a bar on a terminal and plain log lines otherwise."""
    if sys.stderr.isatty():
        yield from tqdm.tqdm(results, total=total, unit="case")
        return
    start = last = time.monotonic()
    for done, result in enumerate(results, start=1):
        yield result  # returns when the case is written
        now = time.monotonic()
        if now - last >= LOG_SECONDS or done == total:
            _log.info("%d/%d cases  %.2f s per case", done, total, (now - start) / done)
            last = now
