"""Cases of a catalogue, read, checked and resized, one file each, by all cores.

A staged case is named by the contents it was made from, so an interrupted preparation goes on where
it stopped, and after a faulty file is mended the others are not read again.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.catalogue import MAX_LABEL, Case, Catalogue, MaskFile
from data.fingerprint import hash_tree
from medsegdiff_jax import atomic, imaging, volumes
from medsegdiff_jax.progress import progress
from medsegdiff_jax.types import InputError, Modality, Task, case_key, check_one_of

VERSION = "2.1.0"  # of what is stored; a new one prepares all data anew
_WINDOW_SAMPLES = 10_000  # foreground voxels of each volume


@dataclasses.dataclass(frozen=True)
class Options:
    """How cases become examples.

    Attributes:
      image_size: side S of the square that pictures and slices are resized to, pixels.
      plane: in which volumes are cut, see `volumes.PLANES`.
      window: intensities that become 0 and 1, for every modality; () = the dataset's own choice.
    """

    image_size: int
    plane: str = "axial"
    window: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Checks the fields; InputError names them."""
        if self.image_size < 1:
            raise InputError("data.image_size: must be at least 1")
        check_one_of("data.plane", self.plane, volumes.PLANES)
        if self.window and not (len(self.window) == 2 and self.window[0] < self.window[1]):
            raise InputError(f"data.window: {self.window} is not (low, high) with low < high")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What one case looks like.

    Attributes:
      shape: of the file, (H, W) or (X, Y, Z).
      plane: (H, W) of the picture or of a slice.
      spacing: voxel size in mm; () for pictures.
      channels: of the image, or modalities of the volume.
      dtype: of the stored image.
      labels: of each rater who annotated it, label -> pixels at the size of the file.
      empty: of each example (slice), whether no rater marked anything that is left at its size.
      turned: whether an EXIF tag has viewers show it turned; here it lies as it is stored.
    """

    shape: tuple[int, ...]
    plane: tuple[int, int]
    spacing: tuple[float, ...]
    channels: int
    dtype: str
    labels: tuple[dict[int, int], ...]
    empty: tuple[bool, ...]
    turned: bool = False

    def to_json(self) -> str:
        """Inverse of `from_json`."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Facts":
        """Rebuilds what `to_json` wrote."""
        fields = json.loads(text)
        fields["labels"] = tuple(
            {int(value): count for value, count in labels.items()} for labels in fields["labels"]
        )
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


@dataclasses.dataclass(frozen=True)
class Staged:
    """A case that has been read: where it lies, and what it looks like."""

    path: Path
    facts: Facts

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Images [N, S, S, C] as stored and labels [N, raters, S, S]."""
        with np.load(self.path) as staged:
            return staged["image"], staged["labels"]


def stage(
    catalogue: Catalogue,
    contents: Mapping[Path, str],
    options: Options,
    folder: Path,
    threads: int,
) -> list[Staged]:
    """Stages every case that is not staged yet; returns all, in catalogue order.

    Args:
      catalogue: its `task` has final modalities (`with_windows`).
      contents: digests of its files.
      options: see there.
      folder: gets a file per case; made if missing.
      threads: cases at once.

    Raises:
      InputError: a file that cannot be right; names it.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def work(case: Case) -> Staged:
        path = folder / f"{_name(case, catalogue.task, contents, options)}.npz"
        if not path.is_file():
            facts, arrays = read_case(case, catalogue.task, options)
            with atomic.replacing(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, facts=np.array(facts.to_json()), **arrays)
            return Staged(path, facts)
        with np.load(path) as staged:
            return Staged(path, Facts.from_json(str(staged["facts"])))

    cases = catalogue.cases
    pool = ThreadPoolExecutor(threads)
    try:
        return list(progress(pool.map(work, cases), len(cases), "preparing"))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _name(case: Case, task: Task | None, contents: Mapping[Path, str], options: Options) -> str:
    """What a staged case depends on, as 32 hex digits."""
    raters = [
        [[contents[mask.path], sorted((mask.values or {}).items())] for mask in files]
        for files in case.raters
    ]
    images = [contents[path] for path in case.images]
    settings = [dataclasses.asdict(options), task.to_json() if task else None, VERSION]
    return hash_tree([case.id, images, raters, settings])[:32]


def read_case(
    case: Case, task: Task | None, options: Options
) -> tuple[Facts, dict[str, np.ndarray]]:
    """One case: its facts, and {"image" [N, S, S, C], "labels" [N, raters, S, S]}.

    A picture gives one example, a volume one per slice.

    Raises:
      InputError: unreadable or non-finite files, a mask that does not fit its image, or labels that
        cannot be right; names the file.
    """
    if task is not None and task.modalities:
        image, raters, grid = read_volume(case, task)
        spacing, shape, turned = grid.spacing, grid.shape, False
        image = volumes.to_slices(volumes.to_stored(image, task.modalities), grid, options.plane)
        raters = [volumes.to_slices(labels, grid, options.plane) for labels in raters]
    else:
        image, raters = read_picture(case)
        spacing, shape, turned = (), image.shape[:2], imaging.is_turned(case.images[0])
        image, raters = image[None], [labels[None] for labels in raters]
    size = (options.image_size, options.image_size)
    dtype = np.min_scalar_type(max(labels.max() for labels in raters))
    labels = np.stack(
        [[resize_annotation(plane, size, task) for plane in rater] for rater in raters], axis=1
    ).astype(dtype)
    facts = Facts(
        shape=tuple(shape),
        plane=image.shape[1:3],
        spacing=tuple(spacing),
        channels=image.shape[-1],
        dtype=image.dtype.name,
        labels=tuple(_counts(rater) for rater in raters),
        empty=tuple(bool(e) for e in ~labels.any(axis=(1, 2, 3))),
        turned=turned,
    )
    images = np.stack([imaging.resize_image(plane, size) for plane in image])
    return facts, {"image": images, "labels": labels}


def _annotations(case: Case, read: Any) -> list[np.ndarray]:
    """Labels by each of its raters, in the size of the files; `read` is path -> integers."""
    raters = []
    for files in case.annotations:
        parts = [_map_labels(read(mask.path), mask) for mask in files]
        if len({part.shape for part in parts}) > 1:
            raise InputError(f"{files[1].path}: has another size than {files[0].path}")
        raters.append(np.bitwise_or.reduce(parts))
    return raters


def _map_labels(labels: np.ndarray, mask: MaskFile) -> np.ndarray:
    if labels.max() > MAX_LABEL:
        raise InputError(f"{mask.path}: label {labels.max()} is above {MAX_LABEL}")
    if mask.values is None:
        return labels
    table = np.full(max(labels.max(), *mask.values) + 1, -1, np.int32)
    for source, target in mask.values.items():
        table[source] = target
    mapped = table[labels]
    if (mapped < 0).any():
        unknown = np.unique(labels[mapped < 0])[:5].tolist()
        raise InputError(f"{mask.path}: holds labels {unknown}, known are {sorted(mask.values)}")
    return mapped


def read_picture(case: Case) -> tuple[np.ndarray, list[np.ndarray]]:
    """[H, W, C] image, and [H, W] labels of each rater who annotated it.

    Raises:
      InputError: see `read_case`.
    """
    (path,) = case.images
    image = imaging.read_image(path)
    raters = _annotations(case, imaging.read_labels)
    for files, labels in zip(case.annotations, raters, strict=True):
        if labels.shape != image.shape[:2]:
            turned = labels.shape == image.shape[1::-1]
            raise InputError(
                f"{files[0].path}: is {_size(labels.shape)}, its image {path} is "
                f"{_size(image.shape)}" + (" (EXIF rotation is not applied)" if turned else "")
            )
    return image, raters


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"


def read_volume(case: Case, task: Task) -> tuple[np.ndarray, list[np.ndarray], volumes.Grid]:
    """[X, Y, Z, M] image, [X, Y, Z] labels of each rater, and the grid of the image.

    Raises:
      InputError: see `read_case`; also labels on another grid.
    """
    image, grid = volumes.read_image(case.images, len(task.modalities))

    def read(path: Path) -> np.ndarray:
        labels, own = volumes.read_labels(path)
        volumes.check_grids(grid, own, case.images[0], path)
        return labels

    return image, _annotations(case, read), grid


def resize_annotation(labels: np.ndarray, size: tuple[int, int], task: Task | None) -> np.ndarray:
    """Area majority; of each region on its own where regions overlap."""
    if task is None or task.exclusive:
        return imaging.resize_labels(labels, size)
    return sum(imaging.resize_labels(labels & value, size) for value in task.label_values)


def _counts(labels: np.ndarray) -> dict[int, int]:
    counts = np.bincount(labels.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def with_windows(
    catalogue: Catalogue,
    contents: Mapping[Path, str],
    options: Options,
    folder: Path,
    threads: int,
) -> Catalogue:
    """Gives the task its final windows.

    `options.window` replaces them all. A modality called "CT" without one gets the 0.5 and 99.5
    percentiles of the foreground voxels of the volumes that are not for testing (as in nnU-Net,
    Isensee et al. 2021), since its units mean the same in every volume; they are remembered in
    `folder`. Those that validate count, too, so that all folds of a cross-validation see the same
    images.
    """
    task = catalogue.task
    if task is None or not task.modalities:
        if options.window:
            raise InputError("data.window: is for volumes; these are pictures")
        return catalogue
    if options.window:
        modalities = tuple(Modality(one.name, options.window) for one in task.modalities)
    elif any(one.name == "CT" and one.window is None for one in task.modalities):
        of_splits = (catalogue.splits.get(split, ()) for split in ("train", "validation"))
        cases = sorted(itertools.chain(*of_splits), key=lambda case: case.id)
        names = [_name(case, task, contents, options) for case in cases]
        note = folder / f"windows_{hash_tree(names)[:32]}.json"
        if not note.is_file():
            windows = _foreground_windows(catalogue, cases, threads)
            atomic.write_text(note, json.dumps(windows))
        modalities = tuple(
            Modality(one.name, tuple(window)) if one.name == "CT" and one.window is None else one
            for one, window in zip(task.modalities, json.loads(note.read_text()), strict=True)
        )
    else:
        return catalogue
    return dataclasses.replace(catalogue, task=dataclasses.replace(task, modalities=modalities))


def _foreground_windows(
    catalogue: Catalogue, cases: Sequence[Case], threads: int
) -> list[list[float]]:
    """[low, high] of every modality, from these cases."""
    task = catalogue.task

    def sample(case: Case) -> np.ndarray:
        image, raters, _ = read_volume(case, task)
        voxels = image[np.any(raters, axis=0)]
        rng, count = np.random.default_rng(case_key(case.id)), min(len(voxels), _WINDOW_SAMPLES)
        return voxels[rng.choice(len(voxels), count, replace=False, shuffle=False)]

    def samples() -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(threads) as pool:
            yield from progress(pool.map(sample, cases), len(cases), "measuring intensities")

    voxels = np.concatenate(list(samples()))
    if not len(voxels):
        raise InputError(f"{catalogue.root}: every label for training is empty")
    windows = np.percentile(voxels, volumes.PERCENTILES, axis=0).T.tolist()
    for low, high in windows:
        if low >= high:
            raise InputError(
                f"{catalogue.root}: all labelled voxels have the intensity {low:g}; choose a range "
                "(data.window)"
            )
    return windows


def default_threads() -> int:
    """All cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
