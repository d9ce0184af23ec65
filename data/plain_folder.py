"""Cases of a catalogue as a folder that any program can read.

    images/<case>.<suffix>         the original file; <case>_0000.nii.gz ... if there are several
    masks/<case>.png or .nii.gz    labels of the task; masks_<rater>/ for several raters
    dataset.json                   of pictures: the names of the classes
    groups.csv                     which cases belong together, where that is known

Such a folder of pictures is itself a dataset of the kind `folder`.
"""

import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from data.catalogue import CLASS_FILE, Case, Catalogue
from data.staging import read_picture, read_volume
from medsegdiff_jax import atomic, groups, imaging, volumes
from medsegdiff_jax.progress import progress
from medsegdiff_jax.types import InputError, Task


def write_cases(catalogue: Catalogue, cases: Sequence[Case], output: Path) -> None:
    """Copies the images of `cases` and writes their labels in the encoding of the task.

    Raises:
      InputError: a case that training would refuse (`staging.read_case`), or a file of another case
        in `output`; names the file.
    """
    refuse_others(output, {case.id for case in cases})
    task = catalogue.task
    for case in progress(cases, len(cases), "writing"):
        if task is not None and task.modalities:
            _write_volume(case, task, catalogue.raters, output)
        else:
            _write_picture(case, catalogue.raters, output)
    if task is not None and not task.modalities:
        write_classes(output, task)
    if any(case.group for case in cases):
        groups.write_groups(output, {case.id: case.group or case.id for case in cases})


def write_classes(output: Path, task: Task) -> None:
    """dataset.json with the classes of pictures."""
    classes = dict(zip(task.classes, task.label_values, strict=True))
    fields = {"classes": classes, "exclusive": task.exclusive}
    atomic.write_json(output / CLASS_FILE, fields)


def refuse_others(output: Path, cases: Collection[str]) -> None:
    """Raises InputError if a file in `output` is of none of these cases.

    It would be segmented and scored with them, even if it was trained on.
    """
    for path in (*output.glob("images/[!.]*"), *output.glob("masks*/[!.]*")):
        stem = volumes.stem(path) if path.name.endswith(volumes.SUFFIXES) else path.stem
        if stem not in cases and re.sub(r"_\d{4}$", "", stem) not in cases:
            raise InputError(f"{path}: is of none of the cases to write; choose another --output")


def check_count(count: int | None, split: str, total: int) -> int:
    """How many cases of a split to write; InputError if there are not so many."""
    if count is not None and not 1 <= count <= total:
        raise InputError(f"--count={count}: {split} has {total} cases")
    if not total:
        raise InputError(f"--split={split}: has no case")
    return count or total


def _write_picture(case: Case, raters: Sequence[str], output: Path) -> None:
    _, annotations = read_picture(case)
    path = case.images[0]
    _copy(path, output / "images" / f"{case.id}{path.suffix.lower()}")
    for rater, labels in zip(_rated_by(case, raters), annotations, strict=True):
        imaging.write_png(_mask_folder(output, rater) / f"{case.id}.png", _small(labels))


def _write_volume(case: Case, task: Task, raters: Sequence[str], output: Path) -> None:
    _, annotations, grid = read_volume(case, task)
    for number, path in enumerate(case.images):
        several = f"_{number:04d}" if len(case.images) > 1 else ""
        suffix = path.name[len(volumes.stem(path)) :].lower()
        _copy(path, output / "images" / f"{case.id}{several}{suffix}")
    for rater, labels in zip(_rated_by(case, raters), annotations, strict=True):
        path = _mask_folder(output, rater) / f"{case.id}.nii.gz"
        volumes.write(path, _small(labels), grid)


def _rated_by(case: Case, raters: Sequence[str]) -> list[str]:
    """The names of those who annotated the case."""
    return [rater for rater, files in zip(raters, case.raters, strict=True) if files]


def _mask_folder(output: Path, rater: str) -> Path:
    return output / (f"masks_{rater}" if rater else "masks")


def _small(labels: np.ndarray) -> np.ndarray:
    return labels.astype(np.min_scalar_type(labels.max()))


def _copy(source: Path, target: Path) -> None:
    with atomic.replacing(target) as temporary:
        shutil.copyfile(source, temporary)
