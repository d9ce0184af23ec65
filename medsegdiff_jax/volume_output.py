"""Volumes as cases of a prediction: slices go through the network, NIfTI files come out.

A volume is cut into slices, each a case of its own to the network; their results are resized in the
plane to the scan's own pixels and stacked again. What is held per volume is the scan in 16 bits and
each result in 8 bits, so memory does not grow with classes that are not saved; except that the
decision "dice" is about the volume as a whole and needs all its probabilities.
"""

import dataclasses
import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medsegdiff_jax import decision, display, imaging, volumes
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
from medsegdiff_jax.types import InputError, Modality, Task, slice_id, volume_of

SUFFIX = ".nii.gz"
OVERLAY_SLICES = 9
OVERLAY_PIXELS = 256  # longer side of a slice in the overlay, at least
_FOLDERS = ("imagesTs", "images", "imagesTr")


def find(
    source: str | os.PathLike, chosen: str | os.PathLike | None, task: Task
) -> dict[str, tuple[Path, ...]]:
    """Case id -> NIfTI files of its modalities, in the order of the task.

    A case is one file (<case>.nii.gz, its modalities along the fourth axis), or a file per
    modality: <case>_0000.nii.gz, <case>_0001.nii.gz ... as in nnU-Net, or
    <case>_<modality>.nii.gz.

    Args:
      source: a file, a folder, or a folder with imagesTs/, images/ or imagesTr/ in it (the first
        of them; with a list, all).
      chosen: text file with one case per line; only these, in this order.
      task: names the modalities.

    Raises:
      InputError: nothing there, no NIfTI file, a missing modality, two files for one case, or a
        chosen case that does not exist; names it.
    """
    paths = files_of(Path(source), _FOLDERS, volumes.SUFFIXES, every=chosen is not None)
    if Path(source).is_file():
        paths = _siblings(Path(source), task.modalities)
    found: dict[str, dict[int, Path]] = {}
    for path, (case, number) in _named(paths, task.modalities).items():
        if number in found.setdefault(case, {}):
            raise InputError(f"{path} and {found[case][number]}: two files for one volume")
        found[case][number] = path
    cases = {case: _complete(files, task.modalities) for case, files in found.items()}
    return choose(cases, chosen)


def _named(paths: Sequence[Path], modalities: Sequence[Modality]) -> dict[Path, tuple[str, int]]:
    """File -> (case, number of its modality).

    Where files are named by modality, others beside them (a segmentation, say) are no scans.
    """
    stems = {path: volumes.stem(path) for path in paths}
    numbered = all(re.search(r"_\d{4}$", stem) for stem in stems.values())
    # Other datasets number their cases like this: amos_0001, amos_0004.
    of_case: dict[str, set[int]] = {}
    for stem in stems.values() if numbered else ():
        of_case.setdefault(stem[:-5], set()).add(int(stem[-4:]))
    every, numbers = all(0 in found for found in of_case.values()), set().union(*of_case.values())
    if numbers == {0} or (0 in numbers and (len(modalities) > 1 or (every and len(of_case) > 1))):
        return {path: (stem[:-5], int(stem[-4:])) for path, stem in stems.items()}
    named = {}
    for path, stem in stems.items() if len(modalities) > 1 else ():
        for number, modality in enumerate(modalities):
            if stem.lower().endswith(f"_{modality.name.lower()}"):
                named[path] = stem[: -len(modality.name) - 1], number
    return named or {path: (stem, 0) for path, stem in stems.items()}


def _siblings(path: Path, modalities: Sequence[Modality]) -> list[Path]:
    """A file alone, or with the files of the other modalities of its case beside it."""
    beside = files_of(path.parent, (), volumes.SUFFIXES) if len(modalities) > 1 else [path]
    named = _named(beside, modalities)
    case, _ = named.get(path, (None, 0))
    return [other for other, (owner, _) in named.items() if owner == case] or [path]


def _complete(files: dict[int, Path], modalities: Sequence[Modality]) -> tuple[Path, ...]:
    if len(files) == 1 and 0 in files:
        return (files[0],)  # whether it holds all modalities is seen when it is read
    path = next(iter(files.values()))
    missing = [one.name for number, one in enumerate(modalities) if number not in files]
    if missing:
        raise InputError(f"{path}: no file of modality {missing[0]} beside it")
    if len(files) > len(modalities):
        raise InputError(
            f"{path}: {len(files)} modalities where the model has {len(modalities)} (by the "
            "numbers at the end of the names; if these number cases, name them otherwise)"
        )
    return tuple(files[number] for number in range(len(modalities)))


def segment(
    segmenter: Segmenter,
    cases: dict[str, tuple[Path, ...]],
    settings: Settings,
    save: Sequence[str],
    skip: SkipFn,
) -> Iterator[CaseFiles]:
    """Segments volumes; slices of neighbouring volumes share batches.

    Those that cannot be read, or have other modalities than the model, go to `skip`.
    """
    config, task = segmenter.config.data, segmenter.task
    scaled = None
    if segmenter.temperature_of(settings) != 1:
        scaled = functools.partial(segmenter.scaled, settings=settings)
    how = _How(settings.decision, scaled)
    opened: dict[str, _Volume] = {}

    def read(name: str, paths: Sequence[Path]) -> _Volume:
        return _Volume(name, paths, config.plane, task, save, how)

    def slices() -> Iterator[tuple[str, np.ndarray]]:
        for name, volume in readable(cases, read, skip):
            opened[name] = volume
            depth = len(volume.slices)
            for index in range(depth):
                around = volumes.neighbours(index, depth, config.neighbours)
                channels = [volume.slices[i] for i in around]
                yield slice_id(name, index), np.concatenate(channels, axis=-1)
            del volume  # or it would stay while the next one is read

    keep = {"keep_members": "members" in save, "keep_path": "animation" in save}
    for result in segmenter.stream(slices(), settings, **keep):
        name = volume_of(result.case_id)
        if opened[name].add(result):
            yield opened.pop(name).files()


class _How(NamedTuple):
    """How a volume is decided, and what scales the probabilities that are written, if anything.

    Masks are decided before the temperature. With one, the unscaled probability is a stack of its
    own (8 bits, not written); without, that of the written probability serves.
    """

    decision: str
    scaled: Callable[[np.ndarray], np.ndarray] | None

    @property
    def decision_stack(self) -> str:
        """The name of the stack that the decision looks at."""
        return "unscaled" if self.scaled else "probability"


class _Volume:
    """A scan and the results of its slices, as far as they have come."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        plane: str,
        task: Task,
        save: Sequence[str],
        how: _How,
    ):
        image, self._grid = volumes.read_image(paths, len(task.modalities))
        stored = volumes.to_stored(image, task.modalities)
        self.slices = volumes.to_slices(stored, self._grid, plane)
        self._name, self._plane, self._task, self._save = name, plane, task, save
        self._how = how
        self._results: dict[str, list[np.ndarray]] = {}
        self._done, self._seconds, self._members, self._largest = 0, 0.0, 0, None
        self._areas: list[int] = []

    def add(self, result: CaseResult) -> bool:
        """Takes the result of the next slice; returns whether it was the last."""
        area = int(np.count_nonzero(result.mask))
        if self._largest is None or area > max(self._areas):
            self._largest = dataclasses.replace(result, image=self.slices[self._done])
        self._areas.append(area)
        self._put("mask", 0, result.mask)
        kept = {"probability": self._shown(result)} if "probability" in self._save else {}
        if self._how.decision != "probable":
            kept[self._how.decision_stack] = result.probability
        for what, values in kept.items():
            for index, (_, channel) in enumerate(class_channels(self._task)):
                self._put(what, index, display.to_byte(values[..., channel]))
        if {"uncertainty", "overlay"} & set(self._save):
            self._put("uncertainty", 0, display.to_byte(result.uncertainty))
        if "members" in self._save:
            for index, member in enumerate(result.members):
                self._put("members", index, member)
        self._done += 1
        self._seconds += result.seconds
        self._members += result.fused_members
        return self._done == len(self.slices)

    def _put(self, what: str, index: int, plane: np.ndarray) -> None:
        stacks = self._results.setdefault(what, [])
        if index == len(stacks):
            stacks.append(np.empty((len(self.slices), *plane.shape), plane.dtype))
        stacks[index][self._done] = plane

    def _shown(self, result: CaseResult) -> np.ndarray:
        """The probability of a slice as it is written."""
        return self._how.scaled(result.probability) if self._how.scaled else result.probability

    def _decide(self) -> tuple[decision.DecideFn, float]:
        """Decides the finished volume; returns how, and how its mask grew by that (`growth_of`)."""
        slices, probable = range(len(self.slices)), sum(self._areas)
        decide = decision.rule(
            self._how.decision, lambda: (self._probable(index)[1] for index in slices), self._task
        )
        for index in slices if self._how.decision != "probable" else ():
            inside, probability = self._probable(index)
            mask = imaging.mask_to_labels(decide(probability), self._task)
            self._results["mask"][0][index][inside] = mask
            self._areas[index] = int(np.count_nonzero(mask))
        return decide, growth_of(sum(self._areas), probable)

    def _probable(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Where a slice may hold something, [H, W] bool, and the probabilities there, [n, K]."""
        kept = [stack[index] for stack in self._results[self._how.decision_stack]]
        inside = np.logical_or.reduce([plane > 0 for plane in kept])
        probability = np.stack([plane[inside] for plane in kept], axis=-1) / np.float32(255)
        if self._task.one_hot:
            background = np.maximum(1 - probability.sum(-1, keepdims=True), 0)
            probability = np.concatenate([background, probability], axis=-1)
        return inside, probability

    def files(self) -> CaseFiles:
        """What is written of the finished volume."""
        decide, growth = self._decide()
        writers = {
            what: [
                functools.partial(
                    volumes.write,
                    voxels=volumes.from_slices(stack, self._grid, self._plane),
                    grid=self._grid,
                    unit=what in ("probability", "uncertainty"),
                )
                for stack in stacks
            ]
            for what, stacks in self._results.items()
            if what in self._save
        }
        if "overlay" in self._save:
            writers["overlay"] = [functools.partial(imaging.write_png, array=self._overlay())]
        best = self._largest
        if "animation" in self._save:
            frames = display.animation(display.to_rgb(best.image), best.path, self._task)
            writers["animation"] = [functools.partial(imaging.write_gif, frames=frames)]
        shape = self._displayed(best.mask.shape)
        shown = imaging.mask_to_labels(decide(best.probability), self._task)
        return CaseFiles(
            case_id=self._name,
            seconds=self._seconds,
            members=round(self._members / len(self.slices), 2),
            growth=growth,
            pictures=display.case_pictures(
                self._name,
                display.to_rgb(imaging.resize_image(best.image, shape)),
                imaging.resize_labels(shown, shape),
                imaging.resize_probability(self._shown(best), shape),
                imaging.resize_probability(best.uncertainty[..., None], shape)[..., 0],
                self._task,
            ),
            writers=named(self._name, writers, self._task, SUFFIX),
        )

    def _displayed(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Size of a slice with square pixels, none smaller than the scan's, and large enough."""
        spacing = volumes.plane_spacing(self._grid, self._plane)
        sides = [n * size / min(spacing) for n, size in zip(shape, spacing, strict=True)]
        zoom = max(1, math.ceil(OVERLAY_PIXELS / max(sides)))
        return tuple(round(zoom * side) for side in sides)

    def _overlay(self) -> np.ndarray:
        """Nine slices through the segmentation (the whole volume if it is empty): [3 h, 3 w, 3]."""
        marked = np.flatnonzero(self._areas)
        first, last = (marked[0], marked[-1]) if marked.size else (0, len(self.slices) - 1)
        panels = []
        for index in np.rint(np.linspace(first, last, OVERLAY_SLICES)).astype(int):
            mask = self._results["mask"][0][index]
            shape = self._displayed(mask.shape)
            doubt = self._results["uncertainty"][0][index, ..., None] / np.float32(255)
            panels.append(
                display.overlay(
                    display.to_rgb(imaging.resize_image(self.slices[index], shape)),
                    display.regions_of(imaging.resize_labels(mask, shape), self._task),
                    imaging.resize_probability(doubt, shape)[..., 0],
                )
            )
        rows = [np.concatenate(panels[i : i + 3], axis=1) for i in range(0, OVERLAY_SLICES, 3)]
        return np.concatenate(rows, axis=0)
