"""Reads every case once, refuses what cannot be right, and tells what was found."""

import dataclasses
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.folder.index import CLASS_FILE, Case, Index, names
from medsegdiff_jax.imaging import read_image, read_labels
from medsegdiff_jax.types import InputError, Task

MAX_UNNAMED_CLASSES = 20
_LOSSY = (".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class CaseFacts:
    """What one case looks like: image size, channels and dtype; pixels per label in each mask."""

    case: Case
    size: tuple[int, int]
    channels: int
    dtype: str
    labels: tuple[dict[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Survey:
    """The checked folder: its task, the dtype and channels of its images, and a report."""

    task: Task
    dtype: np.dtype
    report: str


def _facts(case: Case) -> CaseFacts:
    image = read_image(case.image)
    labels = []
    for path in case.masks:
        mask = read_labels(path)
        if mask.shape != image.shape[:2]:
            raise InputError(
                f"{path}: is {_size(mask.shape)}, its image {case.image} is {_size(image.shape)}"
            )
        if mask.max() > 65535:
            raise InputError(f"{path}: label {mask.max()} is above 65535")
        counts = np.bincount(mask.ravel())
        labels.append({int(value): int(counts[value]) for value in np.flatnonzero(counts)})
    return CaseFacts(case, image.shape[:2], image.shape[-1], image.dtype.name, tuple(labels))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def _declared_task(path: Path) -> Task:
    """Classes and values of `dataset.json`; image_channels is filled in later."""
    try:
        fields = json.loads(path.read_text("utf-8"))
        classes = {str(name): int(value) for name, value in fields["classes"].items()}
        exclusive = bool(fields.get("exclusive", True))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f'{path}: needs {{"classes": {{"name": label value, ...}}}}') from error
    values = tuple(classes.values())
    if not values or min(values) < 1 or max(values) > 65535 or len(set(values)) < len(values):
        raise InputError(f"{path}: label values must be different integers in 1..65535")
    if not exclusive and any(value & (value - 1) for value in values):
        raise InputError(f"{path}: overlapping regions need powers of two as label values")
    return Task(tuple(classes), values, exclusive, 1)


def _file_with(facts: list[CaseFacts], wanted: set[int]) -> str:
    """Names the first masks that hold one of the values."""
    paths = [
        str(path)
        for fact in facts
        for path, labels in zip(fact.case.masks, fact.labels, strict=True)
        if wanted & labels.keys()
    ]
    return names(paths, 3)


def _found_task(facts: list[CaseFacts]) -> Task:
    """Classes from the label values alone; InputError where they look like damage."""
    found = sorted({value for fact in facts for labels in fact.labels for value in labels} - {0})
    if not found:
        raise InputError(f"{facts[0].case.masks[0].parent}: every mask is empty")
    if len(found) == 1:
        return Task(("foreground",), (found[0],), True, 1)
    advice = f"name the classes in {CLASS_FILE} or write clean labels"
    for fact in facts:
        for path, labels in zip(fact.case.masks, fact.labels, strict=True):
            if path.suffix.lower() in _LOSSY and len(labels.keys() - {0}) > 1:
                raise InputError(
                    f"{path}: JPEG compression left {len(labels)} values in a mask; "
                    "store masks as PNG with exact labels"
                )
    if len(found) > MAX_UNNAMED_CLASSES:
        raise InputError(
            f"{_file_with(facts, set(found[1:-1]))}: the masks hold {len(found)} label values; "
            f"{advice}"
        )
    if 255 in found:
        stray = set(found) - {255}
        raise InputError(
            f"{_file_with(facts, stray)}: label values {names(map(str, sorted(stray)))} beside 255 "
            f"(compressed, smoothed, or two conventions); {advice}"
        )
    return Task(tuple(f"class_{value}" for value in found), tuple(found), True, 1)


def _task(index: Index, facts: list[CaseFacts]) -> Task:
    declared = index.root / CLASS_FILE
    if not declared.is_file():
        return _found_task(facts)
    task = _declared_task(declared)
    known = {0, *task.label_values}
    if not task.exclusive:
        known = set(range(sum(task.label_values) + 1))
        known = {v for v in known if not v & ~sum(task.label_values)}
    found = {value for fact in facts for labels in fact.labels for value in labels}
    if found - known:
        unknown = names(map(str, sorted(found - known)))
        where = _file_with(facts, found - known)
        raise InputError(f"{where}: label values {unknown} are not in {declared}")
    return task


def survey(index: Index, threads: int) -> Survey:
    """Decodes all cases, checks them against each other, and writes the report.

    Raises:
      InputError: unreadable, truncated or non-finite files, sizes that differ between image and
        mask, mixed depths, unknown label values; the message names the file.
    """
    cases = [case for split in index.splits.values() for case in split]
    with ThreadPoolExecutor(threads) as pool:
        work = pool.map(_facts, cases)
        facts = list(tqdm(work, total=len(cases), desc="checking", unit="case", disable=None))
    depths: dict[str, Path] = {}
    for fact in facts:
        depths.setdefault(fact.dtype, fact.case.image)
    if len(depths) > 1:
        listed = ", ".join(f"{path} is {dtype}" for dtype, path in sorted(depths.items()))
        raise InputError(f"images of different depths: {listed}")
    task = _task(index, facts)
    channels = max(fact.channels for fact in facts)
    task = dataclasses.replace(task, image_channels=channels)
    return Survey(task, np.dtype(facts[0].dtype), _report(index, facts, task))


def _report(index: Index, facts: list[CaseFacts], task: Task) -> str:
    heights, widths = zip(*(fact.size for fact in facts), strict=True)
    pixels: Counter[int] = Counter()
    empty = 0
    for fact in facts:
        for labels in fact.labels:
            pixels.update(labels)
            empty += not (labels.keys() - {0})
    total = sum(pixels.values())
    channels = Counter(fact.channels for fact in facts)
    kinds = {1: "grey", 3: "RGB"}
    lines = [
        f"data {index.root}",
        "  cases   "
        + ", ".join(f"{split} {len(c)}" for split, c in index.splits.items())
        + f", in no split {len(index.unused)}",
        f"  images  {', '.join(f'{n} {kinds[c]}' for c, n in sorted(channels.items()))} "
        f"{facts[0].dtype}, width {_spread(widths)}, height {_spread(heights)} (min/median/max)",
        f"  masks   {len(index.raters)} per case"
        + (f" ({', '.join(index.raters)})" if index.raters != ("",) else "")
        + f", {empty} of {len(facts) * len(index.raters)} empty",
        "  labels  "
        + ", ".join(
            f"{value}: {_label_name(value, task)} {100 * pixels[value] / total:.3g}%"
            for value in sorted(pixels)
        ),
    ]
    if index.unused:
        lines.append(f"  unused  {names(index.unused)}")
    return "\n".join(lines)


def _spread(values: tuple[int, ...]) -> str:
    return f"{min(values)}/{int(np.median(values))}/{max(values)}"


def _label_name(value: int, task: Task) -> str:
    if value == 0:
        return "background"
    pairs = zip(task.classes, task.label_values, strict=True)
    if task.exclusive:
        return next(name for name, known in pairs if known == value)
    return "+".join(name for name, known in pairs if known & value)
