"""A folder of images or volumes -> a folder of predictions: what `sample.py` does.

For every case its mask, and on request its probability, uncertainty, overlay and members, as PNG
or, for volumes, NIfTI. `run.json` says how all of it was made and lists the cases that are done.
"""

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from medsegdiff_jax import picture_output, report, volume_output
from medsegdiff_jax.progress import progress
from medsegdiff_jax.result_files import SAVE, check_names
from medsegdiff_jax.segmenter import Segmenter, Settings
from medsegdiff_jax.types import InputError, Task
from medsegdiff_jax.version import __version__

SHEET_CASES = 16


def _kind(task: Task) -> ModuleType:
    return volume_output if task.modalities else picture_output


def find_cases(
    source: str | os.PathLike, chosen: str | os.PathLike | None, task: Task
) -> dict[str, tuple[Path, ...]]:
    """Case id -> files: pictures, or NIfTI volumes if the model was trained on volumes.

    Raises:
      InputError: see `picture_output.find` and `volume_output.find`.
    """
    return _kind(task).find(source, chosen, task)


def predict(
    segmenter: Segmenter,
    cases: dict[str, tuple[Path, ...]],
    output: str | os.PathLike,
    settings: Settings,
    save: Sequence[str],
) -> None:
    """Segments `cases` and writes each as soon as it is done.

    Args:
      segmenter: the model.
      cases: from `find_cases`.
      output: folder, made if it is missing.
      settings: from `segmenter.choose`.
      save: some of SAVE.

    Raises:
      InputError: an unreadable image (finished cases stay), an unknown word in `save`, or names
        by which a result would replace an input or another result.
    """
    unknown = set(save) - set(SAVE)
    if unknown or not save:
        raise InputError(f"--save: {', '.join(sorted(unknown))!r} is not among {', '.join(SAVE)}")
    folder, task = Path(output), segmenter.task
    kind = _kind(task)
    check_names(cases, folder, task, save, settings.members, kind.SUFFIX)
    folder.mkdir(parents=True, exist_ok=True)
    if not task.modalities:
        # A lone image must not be computed as a padded batch of many.
        settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, len(cases)))
    run = describe(segmenter, settings)
    sheet: list[report.CasePictures] = []
    report.write_json(folder / "run.json", run)
    try:
        results = kind.segment(segmenter, cases, settings, save)
        for result in progress(results, len(cases), "segmenting"):
            files = result.write(folder)
            # Relative, so that a tree that is moved as a whole keeps its links.
            here = folder.resolve()
            inputs = [os.path.relpath(path.resolve(), here) for path in cases[result.case_id]]
            run["cases"][result.case_id] = {
                "files": files,
                "inputs": inputs,
                "seconds": round(result.seconds, 4),
            }
            if len(sheet) < SHEET_CASES:
                sheet.append(result.pictures)
    finally:
        # Also when an image was unreadable or the run was interrupted: what is done is listed.
        report.write_json(folder / "run.json", run)
    report.write_contact_sheet(folder / "contact_sheet.png", sheet, task)


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
