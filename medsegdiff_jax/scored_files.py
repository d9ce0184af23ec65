"""Reading what is scored: references of every rater, and what sample.py saved of a case."""

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsegdiff_jax import atomic, imaging, volumes
from medsegdiff_jax.trees import differing
from medsegdiff_jax.types import InputError, Task

_ALIKE = ("task", "sampling", "trainings")  # in every run.json that is read together
_SINGLE = "reference"  # the rater of a folder that has only one

_log = logging.getLogger("medsegdiff_jax")


@dataclasses.dataclass(frozen=True)
class PredictedCase:
    """What sample.py has saved of a case.

    Attributes:
      folder: as it was given.
      files: what they hold (one of `result_files.SAVE`) -> files.
      inputs: what was segmented.
      plane: in which a volume was cut.
    """

    folder: str
    files: dict[str, list[Path]]
    inputs: list[Path]
    plane: str


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Folders written by sample.py.

    Attributes:
      task: what was segmented.
      cases: name -> what was saved of it.
      made: how, as far as run.json says: "checkpoint", "checkpoint_sha256" (of several folders
        joined by "; "), "sampling" and, if an ensemble is of several, "trainings".
    """

    task: Task
    cases: dict[str, PredictedCase]
    made: dict[str, Any]


def read_predictions(folders: Sequence[str | os.PathLike]) -> Predictions:
    """What sample.py has written to a folder, or to several, such as one of each fold.

    Raises:
      InputError: a folder without a run.json that lists masks, a case that two of them have,
        folders with different tasks or settings, or members or probabilities of some cases alone.
    """
    runs = [_read_run(Path(folder)) for folder in folders]
    first, _ = runs[0]
    cases: dict[str, PredictedCase] = {}
    for folder, (run, found) in zip(folders, runs, strict=True):
        fields = differing(*({field: one.get(field) for field in _ALIKE} for one in (first, run)))
        if fields:
            raise InputError(f"{folder}: was made with another {fields[0]} than {folders[0]}")
        for case, one in found.items():
            if case in cases:
                raise InputError(f"{folder}: has a prediction of {case}, as {cases[case].folder}")
            cases[case] = one
    _check_files(cases)
    if len({run.get("temperature", 1.0) == 1.0 for run, _ in runs}) > 1:
        _log.warning("the probabilities of some folders are scaled by a temperature, others not")
    made = {
        field: "; ".join(run[field] for run, _ in runs)
        for field in ("checkpoint", "checkpoint_sha256")
        if all(field in run for run, _ in runs)
    }
    made |= {"trainings": first["trainings"]} if first.get("trainings", 1) > 1 else {}
    made |= {"sampling": first["sampling"]} if "sampling" in first else {}
    return Predictions(Task.from_json(first["task"]), cases, made)


def _check_files(cases: Mapping[str, PredictedCase]) -> None:
    """Raises InputError if members or probabilities were saved of some cases and not of others."""
    kinds = {
        case: sorted({"members", "probability"} & one.files.keys()) for case, one in cases.items()
    }
    first = next(iter(cases))
    for case, found in kinds.items():
        if found != kinds[first]:
            raise InputError(
                f"{cases[case].folder}: {case} has other files (members, probability) than {first} "
                f"in {cases[first].folder}; sample all cases with the same --save"
            )


def _read_run(folder: Path) -> tuple[dict[str, Any], dict[str, PredictedCase]]:
    """The run.json of a folder, and its cases."""
    path = folder / "run.json"
    try:
        run = atomic.read_json(path)
        Task.from_json(run["task"])
        plane = run.get("config", {}).get("data", {}).get("plane", "axial")
        cases = {}
        for case, entry in run["cases"].items():
            files = {
                what: [folder / name for name in names] for what, names in entry["files"].items()
            }
            inputs = [folder / name for name in entry.get("inputs", ())]
            cases[case] = PredictedCase(str(folder), files, inputs, plane)
        masks = [one.files["mask"][0] for one in cases.values()]
    except OSError as error:
        raise InputError(f"{path}: cannot be read; --predictions is a folder of sample.py") from (
            error
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not the run.json of a run that saved masks") from error
    if not masks:
        raise InputError(f"{path}: lists no finished case")
    return run, cases


def find_references(roots: Sequence[str | os.PathLike], task: Task) -> dict[str, dict[str, Path]]:
    """Name of each rater -> case -> mask file.

    Args:
      roots: folders with masks/ or masks_<rater>/ (for volumes also labelsTs/ or labelsTr/), or of
        mask files themselves.
      task: pictures or volumes, and whether labels or regions.

    Raises:
      InputError: no such folder, one of predictions, no mask in it, two masks of one case, or
        several raters in some folders alone.
    """
    of_roots = [_references_in(Path(root), task) for root in roots]
    if len({bool(imaging.rater_folders(Path(root))) for root in roots}) > 1:
        raise InputError(
            f"{' and '.join(map(str, roots))}: some have masks_<rater>/, others a single mask per "
            "case; score them apart"
        )
    raters: dict[str, dict[str, Path]] = {}
    for rater, masks in (item for found in of_roots for item in found.items()):
        known = raters.setdefault(rater, {})
        for case in masks.keys() & known.keys():
            raise InputError(f"{known[case]} and {masks[case]}: two references of one case")
        known.update(masks)
    return raters


def _references_in(root: Path, task: Task) -> dict[str, dict[str, Path]]:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    suffixes = volumes.SUFFIXES if task.modalities else imaging.IMAGE_SUFFIXES
    folders = imaging.rater_folders(root)
    single = ("masks", "labelsTs", "labelsTr") if task.modalities else ("masks",)
    if folders and (root / "masks").is_dir():
        _log.warning("%s: masks/ is not read, since there is masks_%s/", root, next(iter(folders)))
    raters = {rater: imaging.files_by_stem(path, suffixes) for rater, path in folders.items()}
    if not folders:
        # A Decathlon folder may keep the labels of its test cases apart.
        places = [root / name for name in single if (root / name).is_dir()] or [root]
        if places == [root] and (root / "run.json").is_file():
            raise InputError(f"{root}: holds predictions (it has a run.json), not references")
        if not task.exclusive and places[0].name.startswith("labelsT"):
            raise InputError(
                f"{places[0]}: holds the labels of a dataset, not the overlapping regions that "
                "the model learnt; write these with python -m data and score against them"
            )
        merged: dict[str, Path] = {}
        for folder in reversed(places):
            merged |= imaging.files_by_stem(folder, suffixes)
        raters = {_SINGLE: merged}
    if not any(raters.values()):
        raise InputError(f"{root}: holds no mask")
    return raters


def read_labels(
    path: Path, task: Task, *, foreign: bool = False
) -> tuple[np.ndarray, volumes.Grid | None]:
    """Labels of a picture or, with its grid, of a volume.

    Args:
      path: its file.
      task: says which labels there are.
      foreign: not written by sample.py; a lone class may be written as 1 or 255 too.

    Raises:
      InputError: it cannot be read, or holds labels that the task does not know.
    """
    labels, grid = (
        volumes.read_labels(path) if task.modalities else (imaging.read_labels(path), None)
    )
    present = np.unique(labels)
    if foreign and len(task.classes) == 1 and present[present != 0].tolist() in ([1], [255]):
        # Whether a lone class is written as 1 or 255 is a matter of taste; another value than these
        # and the task's own is another class.
        return np.where(labels != 0, task.label_values[0], 0), grid
    try:
        imaging.labels_to_mask(present[None], task)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return labels, grid


def check_raters(cases: Sequence[str], raters: dict[str, dict[str, Path]]) -> None:
    """Each of the cases needs a mask of one of the raters, from `find_references`, at least.

    Raises:
      InputError: there is none of a case.
    """
    bare = [case for case in cases if not any(case in masks for masks in raters.values())]
    if bare:
        folders = " and ".join(str(next(iter(m.values())).parent) for m in raters.values() if m)
        others = f" ({len(bare)} of {len(cases)} have none)" if len(bare) > 1 else ""
        raise InputError(f"{folders}: no mask of {bare[0]}, which has a prediction{others}")
    for rater, masks in raters.items():
        missing = sum(case not in masks for case in cases)
        if missing:
            _log.warning("masks_%s/ has no mask of %d of %d cases", rater, missing, len(cases))


def read_references(
    case: str,
    raters: dict[str, dict[str, Path]],
    task: Task,
    shape: tuple[int, ...],
    grid: volumes.Grid | None,
) -> dict[str, np.ndarray]:
    """Labels of a case by each rater who has a mask of it, in the shape of the prediction.

    Args:
      case: its name.
      raters: from `find_references`, one of whom has it at least (`check_raters`).
      task: says which labels there are.
      shape: of the prediction.
      grid: of the prediction; None for a picture.

    Raises:
      InputError: a mask does not fit the prediction.
    """
    found = {}
    for rater, masks in raters.items():
        if case not in masks:
            continue
        labels, own = read_labels(masks[case], task, foreign=True)
        _check_shape(masks[case], labels.shape, shape)
        if grid:
            volumes.check_grids(grid, own, Path(f"the prediction of {case}"), masks[case])
        found[rater] = labels
    return found


def read_members(case: PredictedCase, task: Task, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Labels of every saved member, in the smallest type that holds them; [] without any."""
    members = []
    for path in case.files.get("members", []):
        labels, _ = read_labels(path, task)
        _check_shape(path, labels.shape, shape)
        members.append(labels.astype(task.label_dtype))
    return members


def read_probability(
    case: PredictedCase, task: Task, index: int, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Saved probability of the class with this index, float32 in [0, 1]; None without any."""
    if "probability" not in case.files:
        return None
    if len(case.files["probability"]) != len(task.classes):
        raise InputError(f"{case.folder}/run.json: not one probability for each class")
    path = case.files["probability"][index]
    if task.modalities:
        probability = np.clip(volumes.read_image([path], 1)[0][..., 0], 0, 1)
    else:
        probability = imaging.read_labels(path) / np.float32(255)
    _check_shape(path, probability.shape, shape)
    return probability


def _check_shape(path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        order = 1 if len(shape) == 3 else -1  # pictures are spoken of as width x height
        sizes = ["x".join(map(str, one[::order])) for one in (shape, expected)]
        raise InputError(f"{path}: is {sizes[0]}, its prediction {sizes[1]}")
