"""What the staged cases have in common: the task, refusals, and the report."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.catalogue import CLASS_FILE, Case, Catalogue, names
from data.staging import Facts
from medsegdiff_jax.types import InputError, Task

MAX_UNNAMED_CLASSES = 20
_LOSSY = (".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Survey:
    """The checked dataset.

    Attributes:
      task: final.
      dtype: of the stored images.
      report: what was found, a few lines of text.
    """

    task: Task
    dtype: np.dtype
    report: str


def survey(catalogue: Catalogue, facts: Sequence[Facts], notes: Sequence[str] = ()) -> Survey:
    """Checks the cases against each other and writes the report.

    Args:
      catalogue: what was staged.
      facts: of its cases, in their order.
      notes: more lines for the report.

    Raises:
      InputError: mixed depths, unknown labels, labels that look like damage, masks that are all
        empty or of which nothing is left at the size of the network; names the file or folder.
    """
    depths: dict[str, Path] = {}
    for case, fact in zip(catalogue.cases, facts, strict=True):
        depths.setdefault(fact.dtype, case.images[0])
    if len(depths) > 1:
        listed = ", ".join(f"{path} is {dtype}" for dtype, path in sorted(depths.items()))
        raise InputError(f"images of different depths: {listed}")
    found = _Found(catalogue, facts)
    if not found.values():
        first, _ = next(found.masks())
        raise InputError(f"{first.parent}: every mask is empty")
    if catalogue.task is None:
        task = _found_task(found)
    else:
        task = catalogue.task
        _check_labels(found, task)
        notes = (*notes, *_absent(found, task))
    if not task.image_channels:
        task = dataclasses.replace(task, image_channels=max(fact.channels for fact in facts))
    notes = (*notes, *_lost(found), *_turned(found))
    return Survey(task, np.dtype(facts[0].dtype), _report(found, task, notes))


@dataclasses.dataclass(frozen=True)
class _Found:
    """Cases beside their facts."""

    catalogue: Catalogue
    facts: Sequence[Facts]

    def masks(self) -> Iterator[tuple[Path, dict[int, int]]]:
        """(file, label -> pixels) of every annotation."""
        cases: Sequence[Case] = self.catalogue.cases
        for case, fact in zip(cases, self.facts, strict=True):
            for files, labels in zip(case.annotations, fact.labels, strict=True):
                yield files[0].path, labels

    def files_with(self, wanted: set[int]) -> str:
        """Names the first masks that hold one of the values."""
        return names((path for path, labels in self.masks() if wanted & labels.keys()), 3)

    def values(self) -> set[int]:
        """All labels but the background."""
        return {value for _, labels in self.masks() for value in labels} - {0}


def _lost(found: _Found) -> list[str]:
    """A note if some masks are empty at the size of the network; an error if all are."""
    marked = [fact for fact in found.facts if any(labels.keys() - {0} for labels in fact.labels)]
    lost = sum(all(fact.empty) for fact in marked)
    if marked and lost == len(marked):
        raise InputError(
            f"{found.catalogue.root}: of no mask is anything left at the size of the network; "
            "a larger config field data.image_size keeps small objects"
        )
    if not lost:
        return []
    return [
        f"of {lost} of {len(marked)} masks with labels nothing is left at the size of the network; "
        "a larger data.image_size keeps small objects"
    ]


def _turned(found: _Found) -> list[str]:
    """A note on pictures that a viewer shows otherwise than they are stored."""
    pairs = zip(found.catalogue.cases, found.facts, strict=True)
    turned = [case.images[0].name for case, fact in pairs if fact.turned]
    if not turned:
        return []
    return [f"of {len(turned)} images an EXIF rotation is not applied: {names(turned, 3)}"]


def _check_labels(found: _Found, task: Task) -> None:
    highest = sum(task.label_values)
    known = set(task.label_values)
    if not task.exclusive:  # any sum of the values, which are powers of two
        known = {value for value in range(highest + 1) if not value & ~highest}
    unknown = found.values() - known
    if unknown:
        raise InputError(
            f"{found.files_with(unknown)}: label values {names(sorted(unknown))} are not in "
            f"{found.catalogue.root / CLASS_FILE}"
            if (found.catalogue.root / CLASS_FILE).is_file()
            else f"{found.files_with(unknown)}: label values {names(sorted(unknown))} are unknown"
        )


def _absent(found: _Found, task: Task) -> list[str]:
    """A note on declared classes that no mask has."""
    values = found.values()
    pairs = zip(task.classes, task.label_values, strict=True)
    if task.exclusive:
        absent = [name for name, value in pairs if value not in values]
    else:
        absent = [name for name, value in pairs if not any(value & one for one in values)]
    return [f"in no mask: {names(absent)}"] if absent else []


def _found_task(found: _Found) -> Task:
    """Classes of pictures from the label values alone; InputError where they look like damage."""
    values = sorted(found.values())
    if len(values) == 1:
        return Task(("foreground",), (values[0],), True, 0)
    advice = f"name the classes in {CLASS_FILE} or write clean labels"
    for path, labels in found.masks():
        if path.suffix.lower() in _LOSSY and len(labels.keys() - {0}) > 1:
            raise InputError(
                f"{path}: JPEG compression left {len(labels)} values in a mask; "
                "store masks as PNG with exact labels"
            )
    if len(values) > MAX_UNNAMED_CLASSES:
        raise InputError(
            f"{found.files_with(set(values[1:-1]))}: the masks hold {len(values)} label values; "
            f"{advice}"
        )
    if 255 in values:
        stray = set(values) - {255}
        if all(len(labels.keys() - {0}) <= 1 for _, labels in found.masks()):
            raise InputError(
                f"{found.files_with(stray)}: mark with {names(sorted(stray))} where other masks "
                "have 255; write the class with one value in all masks"
            )
        raise InputError(
            f"{found.files_with(stray)}: label values {names(sorted(stray))} beside 255 "
            f"(compressed, smoothed, or two conventions); {advice}"
        )
    return Task(tuple(f"class_{value}" for value in values), tuple(values), True, 0)


def _report(found: _Found, task: Task, notes: Sequence[str]) -> str:
    catalogue, facts = found.catalogue, found.facts
    pixels: Counter[int] = Counter()
    for _, labels in found.masks():
        pixels.update(labels)
    total = sum(pixels.values())
    counts = [len(fact.labels) for fact in facts]
    fewest, most = min(counts), max(counts)
    raters = f"{fewest if fewest == most else f'{fewest}..{most}'} per case"
    if catalogue.raters != ("",):
        raters += f" ({', '.join(catalogue.raters)})"
    masks = [labels for _, labels in found.masks()]
    empty = sum(not labels.keys() - {0} for labels in masks)
    lines = [
        "  cases   " + ", ".join(_split_line(s, c) for s, c in catalogue.splits.items()),
        "  images  " + (_volumes_line(facts, task) if task.modalities else _pictures_line(facts)),
        f"  masks   {raters}, {empty} of {len(masks)} empty",
        "  labels  "
        + ", ".join(
            f"{value}: {_label_name(value, task)} {100 * pixels[value] / total:.3g}%"
            for value in sorted(pixels)
        ),
    ]
    return "\n".join([*lines, *(f"  note    {note}" for note in notes)])


def _split_line(split: str, cases: Sequence[Case]) -> str:
    groups = {case.group for case in cases} - {""}
    if not groups:
        return f"{split} {len(cases)}"
    return f"{split} {len(cases)} in {len(groups)} group{'s'[: len(groups) - 1]}"


def _pictures_line(facts: Sequence[Facts]) -> str:
    heights, widths = zip(*(fact.shape for fact in facts), strict=True)
    kinds = {1: "grey", 3: "RGB"}
    channels = Counter(fact.channels for fact in facts)
    return (
        f"{', '.join(f'{n} {kinds[c]}' for c, n in sorted(channels.items()))} {facts[0].dtype}, "
        f"width {_spread(widths)}, height {_spread(heights)} (min/median/max)"
    )


def _volumes_line(facts: Sequence[Facts], task: Task) -> str:
    sizes = " x ".join(_spread([fact.shape[axis] for fact in facts]) for axis in range(3))
    spacing = " x ".join(_spread([fact.spacing[axis] for fact in facts]) for axis in range(3))
    empty = [flag for fact in facts for flag in fact.empty]
    modalities = ", ".join(
        f"{one.name} ({one.window[0]:g} to {one.window[1]:g})" if one.window else one.name
        for one in task.modalities
    )
    return (
        f"{len(facts)} volumes of {modalities}, {sizes} voxels, {spacing} mm (min/median/max), "
        f"{len(empty)} slices, {100 * np.mean(empty):.3g}% without label"
    )


def _spread(values: Sequence[float]) -> str:
    return "/".join(f"{value:.4g}" for value in (min(values), np.median(values), max(values)))


def _label_name(value: int, task: Task) -> str:
    if value == 0:
        return "background"
    pairs = zip(task.classes, task.label_values, strict=True)
    if task.exclusive:
        return next(name for name, known in pairs if known == value)
    return "+".join(name for name, known in pairs if known & value)
