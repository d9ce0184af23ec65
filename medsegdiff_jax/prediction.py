"""A folder of images or volumes -> a folder of predictions: what `sample.py` does.

For every case its mask, and on request its probability, uncertainty, overlay and members, as PNG
or, for volumes, NIfTI. `run.json` says how all of it was made and lists the cases that are done.
"""

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from medsegdiff_jax import atomic, display, picture_output, plots, volume_output
from medsegdiff_jax.checkpoint import digest
from medsegdiff_jax.progress import progress
from medsegdiff_jax.result_files import SAVE, CaseFiles, check_names
from medsegdiff_jax.segmenter import Segmenter
from medsegdiff_jax.settings import Settings
from medsegdiff_jax.trees import differing
from medsegdiff_jax.types import InputError, Task
from medsegdiff_jax.version import __version__

SHEET_CASES = 16
LARGEST_GROWTH = 2.0  # of masks by the decision; trained models stay near 1
LIST_SECONDS = 10  # between updates of run.json; a killed run repeats no more than these

_SAME_RUN = ("version", "checkpoint_sha256", "temperature", "sampling", "task")
_NOT_RECORDED = ("member_chunk", "batch_size")  # they change last digits only
# The number of members and the decision do not change what the probabilities mean.
_TEMPERATURE_DEPENDS_ON = ("steps", "sampler", "fusion", "mirror")

_log = logging.getLogger("medsegdiff_jax")


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

    What an earlier call with the same version, model and settings has finished in `output` is kept;
    so a run that was interrupted goes on where it was. Calls at the same time may share the work by
    lists. A case that cannot be read is left out, which is an error at the end. The contact sheet
    shows what was computed by a call that began anew, or by the first.

    Args:
      segmenter: the model.
      cases: from `find_cases`.
      output: folder, made if it is missing.
      settings: from `Segmenter.choose`.
      save: some of SAVE.

    Raises:
      InputError: before anything is written, an unknown word in `save`, members of volumes whose
        slices have different numbers of them, or names by which a result would replace an input,
        another result or a file that an earlier call has not written; at the end, images that
        could not be read.
    """
    folder, task = Path(output), segmenter.task
    kind = _kind(task)
    _check(save, task, settings)
    most = segmenter.most_members(settings)
    check_names(cases, folder, task, save, most, kind.SUFFIX)
    if not task.modalities:
        settings = settings.for_cases(len(cases))
    _warn_of_temperature(segmenter, settings)
    run = describe(segmenter, settings)
    left, earlier = _begin(folder, run, cases, save)
    made_of = {case: _made_of(paths, folder) for case, paths in left.items()}
    unread: list[InputError] = []
    if left:
        _log.info("the first batch waits for the compiler, unless these settings are known")
    results = kind.segment(segmenter, left, settings, save, unread.append)
    results = progress(results, len(left), "segmenting")
    sheet, growth = _write_each(results, folder, run, cases, made_of, earlier)
    page = folder / "contact_sheet.png"
    if sheet and (len(left) == len(cases) or not page.exists()):  # else it has earlier cases
        plots.write_contact_sheet(page, sheet, task, len(cases))
    _warn_of_growth(growth)
    if unread:
        more = f", as {len(unread) - 1} more (see above)" if len(unread) > 1 else ""
        raise InputError(f"{unread[0]}; left out{more}, the others are done")


def _write_each(
    results: Iterator[CaseFiles],
    folder: Path,
    run: dict[str, Any],
    cases: Mapping[str, Any],
    made_of: Mapping[str, dict[str, Any]],
    earlier: Mapping[str, Any],
) -> tuple[list[display.CasePictures], list[float]]:
    """Writes and lists each result; returns the first pictures, and how each mask grew."""
    sheet: list[display.CasePictures] = []
    growth: list[float] = []
    listed = time.monotonic()
    try:
        for result in results:
            entry = {
                **made_of[result.case_id],
                "files": result.write(folder),
                "seconds": round(result.seconds, 4),
                "members": result.members,
            }
            _remove_members(folder, earlier.get(result.case_id, {}), entry)
            run["cases"][result.case_id] = entry
            growth.append(result.growth)
            if len(sheet) < SHEET_CASES:
                sheet.append(result.pictures)
            if time.monotonic() - listed > LIST_SECONDS:
                _list(folder, run, cases)
                listed = time.monotonic()
    finally:
        # Also when the disk is full or the run was interrupted: what is done is listed.
        _list(folder, run, cases)
    return sheet, growth


def _remove_members(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Removes samples of an earlier call that had more: they would pass for some of this one's."""
    new = _files(now, "members", folder)
    for path in _files(before, "members", folder) if new else ():
        if path not in new:
            path.unlink(missing_ok=True)


def _warn_of_temperature(segmenter: Segmenter, settings: Settings) -> None:
    if segmenter.sets_temperatures_aside:
        _log.warning(
            "the temperatures of the checkpoints are not used: they were fitted for each alone"
        )
    fitted = {field: segmenter.fitted_with.get(field) for field in _TEMPERATURE_DEPENDS_ON}
    other = [f"{k}={v}" for k, v in fitted.items() if v is not None and v != getattr(settings, k)]
    if other and segmenter.temperature_of(settings) != 1:
        _log.warning(
            "the temperature of this checkpoint was fitted with %s; calibrate.py fits it anew",
            ", ".join(other),
        )


def _warn_of_growth(growth: Sequence[float]) -> None:
    """Says what a training that was too short looks like.

    Expected Dice trusts the probabilities; where most pixels are in doubt it marks them all. Where
    none is probable in any case, there is no growth at all (`growth_of`).
    """
    found = [one for one in growth if np.isfinite(one)]
    if growth and not found:
        _log.warning(
            "in no case (%d) is anything more probable than not: there is nothing to find, or the "
            "training was too short",
            len(growth),
        )
    elif found and np.median(found) > LARGEST_GROWTH:
        _log.warning(
            "the masks are %.1f times as large as what is more probable than not (median): the "
            "model is unsure nearly everywhere, as after too short a training; "
            "--decision=probable marks only what is probable",
            np.median(found),
        )


def _begin(
    folder: Path, run: dict[str, Any], cases: Mapping[str, tuple[Path, ...]], save: Sequence[str]
) -> tuple[dict[str, tuple[Path, ...]], Mapping[str, Any]]:
    """Writes run.json with what is finished, which `run` gets too.

    Returns:
      what is left, and the cases that run.json listed before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.alone(folder):
        earlier = _earlier(folder)
        changed = _differing(earlier, run)
        run["cases"] = {} if changed else _finished(earlier["cases"], folder, cases, save)
        atomic.write_json(folder / "run.json", run)
    if changed and earlier.get("cases"):
        _log.warning(
            "%s: its results, made with another %s, are replaced; those of other cases or kinds "
            "stay, but run.json lists them no more",
            folder,
            " and ".join(name.removeprefix("sampling.") for name in changed),
        )
    left = {case: paths for case, paths in cases.items() if case not in run["cases"]}
    if len(left) < len(cases):
        _log.info("%d of %d cases are done already", len(cases) - len(left), len(cases))
    return left, earlier.get("cases", {})


def check_save(save: Sequence[str]) -> None:
    """Raises InputError for an unknown word, or none, before a model is loaded."""
    unknown = set(save) - set(SAVE)
    if unknown or not save:
        raise InputError(f"--save: {', '.join(sorted(unknown))!r} is not among {', '.join(SAVE)}")


def _check(save: Sequence[str], task: Task, settings: Settings) -> None:
    check_save(save)
    if settings.steps == 0 and "animation" in save:
        raise InputError("--save: with --steps=0 there is no way from noise to an animation")
    if settings.tolerance and task.modalities and "members" in save:
        raise InputError("--save: with --tolerance the slices of a volume differ in their members")


def _list(folder: Path, run: Mapping[str, Any], cases: Mapping[str, Any]) -> None:
    """Writes run.json; what another call has meanwhile listed there of other cases stays."""
    with atomic.alone(folder):
        earlier = _earlier(folder)
        listed = {} if _differing(earlier, run) else earlier["cases"]
        others = {case: entry for case, entry in listed.items() if case not in cases}
        atomic.write_json(folder / "run.json", {**run, "cases": run["cases"] | others})


def _earlier(folder: Path) -> dict[str, Any]:
    """The run.json of an earlier call; empty if there is none or it is damaged."""
    try:
        earlier = atomic.read_json(folder / "run.json")
        return earlier if isinstance(earlier["cases"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _differing(earlier: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """Which of _SAME_RUN differ, the single settings of `sampling` by their names."""
    before, now = ({field: one.get(field) for field in _SAME_RUN} for one in (earlier, run))
    return differing(before, now)


def _finished(
    listed: Mapping[str, Any],
    folder: Path,
    cases: Mapping[str, Sequence[Path]],
    save: Sequence[str],
) -> dict[str, Any]:
    """The entries of `listed` (case -> entry) that still hold.

    A case counts if all that is to be saved of it is there, made of the same image files; one that
    is not among `cases`, if its files are there.
    """
    return {
        case: entry
        for case, entry in listed.items()
        if (
            _is_up_to_date(entry, folder, cases[case], save)
            if case in cases
            else all(path.is_file() for path in _results(entry, folder))
        )
    }


def _results(entry: Mapping[str, Any], folder: Path) -> list[Path]:
    return [path for what in entry.get("files", {}) for path in _files(entry, what, folder)]


def _files(entry: Mapping[str, Any], what: str, folder: Path) -> list[Path]:
    """Those of an entry that hold `what` (one of SAVE)."""
    return [folder / name for name in entry.get("files", {}).get(what, [])]


def _is_up_to_date(
    entry: Mapping[str, Any], folder: Path, paths: Sequence[Path], save: Sequence[str]
) -> bool:
    return (
        _made_of(paths, folder).items() <= entry.items()
        and set(save) <= entry.get("files", {}).keys()
        and all(path.is_file() for path in _results(entry, folder))
    )


def _made_of(paths: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The image files of a case in its entry, seen from `folder` (a tree may be moved as a whole).

    A file of another size or time is another one, be its date older or newer. Asked before the
    files are read, so that one that changes meanwhile is read again by the next call.
    """
    return {
        "inputs": [os.path.relpath(path.resolve(), folder.resolve()) for path in paths],
        "stamps": [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths],
    }


def describe(segmenter: Segmenter, settings: Settings) -> dict[str, Any]:
    """The head of run.json: everything that the predictions depend on; no case yet."""
    return {
        "version": __version__,
        "jax": jax.__version__,
        "devices": [device.device_kind for device in jax.devices()],
        "checkpoint": segmenter.description,
        "trainings": len(segmenter.params),
        "checkpoint_sha256": digest(segmenter.params),
        "temperature": segmenter.temperature,
        "sampling": {k: v for k, v in vars(settings).items() if k not in _NOT_RECORDED},
        "task": segmenter.task.to_json(),
        "config": segmenter.config.to_dict(),
        "cases": {},
    }
