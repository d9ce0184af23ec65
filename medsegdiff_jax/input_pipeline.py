"""From prepared datasets to batches: TFDS array_record read through Grain, without TensorFlow.

The only place where stored pixels become float for training. A batch is a pure function of the
configuration, the seed and the step: nothing about the position needs to be saved.
"""

import dataclasses
import functools
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds

from data import preparation
from data.catalogue import SPLITS
from medsegdiff_jax import fusion, volumes
from medsegdiff_jax.augment import Augmentation, augment
from medsegdiff_jax.imaging import labels_to_mask, normalize, to_unit
from medsegdiff_jax.types import InputError, Task, case_key, check_at_least, check_one_of

RATERS = ("draw", "mean")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset.

    Attributes:
      name: one of `data.preparation.DATASETS`.
      task: what is segmented.
      fingerprint: changes when the data or their preparation change.
      image_shape: (S, S, C).
      report: what was found in the data, a few lines of text.
      sources: split -> random-access source of {"image" [S, S, C] as stored, "labels"
        [raters, S, S] label values by all who annotated it, "id" bytes}; a split without cases is
        an empty sequence.
      empty: positions of the training examples that no rater marked.
    """

    name: str
    task: Task
    fingerprint: str
    image_shape: tuple[int, int, int]
    report: str
    sources: Mapping[str, Sequence[Mapping[str, Any]]]
    empty: Sequence[int] = ()


def load(data_config: Any) -> Dataset:
    """Opens the dataset of a config, preparing it first if it is not in the cache.

    Args:
      data_config: the config node `data`.

    Raises:
      InputError: unknown dataset, or data that cannot be right.
    """
    prepared, notes = preparation.builder_of(data_config.name).prepare(data_config)
    builder = tfds.builder_from_directory(prepared)
    metadata = builder.info.metadata
    sources = {
        split: builder.as_data_source(split=split) if split in builder.info.splits else ()
        for split in SPLITS
    }
    task, shape = Task.from_json(metadata["task"]), builder.info.features["image"].shape
    if data_config.neighbours:
        if not task.modalities:
            raise InputError(
                f"config field data.neighbours: {data_config.neighbours} slices, but these are "
                "pictures"
            )
        sources = {
            split: _WithNeighbours(source, data_config.neighbours)
            for split, source in sources.items()
        }
        channels = task.image_channels * (2 * data_config.neighbours + 1)
        task = dataclasses.replace(task, image_channels=channels)
    where = [word for word in (data_config.variant, data_config.path) if word]
    found = [*metadata["report"].splitlines(), *(f"  note    {note}" for note in notes)]
    return Dataset(
        name=data_config.name,
        task=task,
        fingerprint=metadata["fingerprint"],
        image_shape=(*shape[:2], task.image_channels),
        report="\n".join([" ".join(["data", data_config.name, *where]), *found]),
        sources=sources,
        empty=metadata["empty"],
    )


class _WithNeighbours(Sequence):
    """Slices whose channels are those of the slices around them, in order (2.5-D)."""

    def __init__(self, source: Sequence[Mapping[str, Any]], reach: int):
        self._source, self._reach = source, reach

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = dict(self._source[index])
        first = index - int(example["slice"])
        around = volumes.neighbours(int(example["slice"]), int(example["depth"]), self._reach)
        images = [
            example["image"] if first + i == index else self._source[first + i]["image"]
            for i in around
        ]
        return {**example, "image": np.concatenate(images, axis=-1)}


class _Share(Sequence):
    """Rows `first` to `first + rows` of every batch of a stream of examples."""

    def __init__(self, stream: grain.MapDataset, first: int, rows: int, batch_size: int):
        self._stream, self._first, self._rows, self._size = stream, first, rows, batch_size

    def __len__(self) -> int:
        return len(self._stream) // self._size * self._rows

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        batch, row = divmod(index, self._rows)
        return self._stream[batch * self._size + self._first + row]


class _Subset(Sequence):
    """The examples at some positions."""

    def __init__(self, source: Sequence[Mapping[str, Any]], positions: Sequence[int]):
        self._source, self._positions = source, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self._source[self._positions[index]]


def _training_example(
    example: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    task: Task,
    raters: str,
    settings: Augmentation,
) -> dict[str, np.ndarray]:
    """One augmented example; its mask is that of a rater drawn at random, or the raters' mean."""
    labels = example["labels"]
    if raters == "draw":
        labels = labels[rng.integers(len(labels))][None]
    image, labels = augment(to_unit(example["image"]), labels, rng, settings)
    mask = labels_to_mask(labels, task).mean(axis=0, dtype=np.float32)
    return {"image": normalize(image, task), "mask": mask}


def _shuffled(dataset: Dataset, max_empty: float, seed: int) -> grain.MapDataset:
    """Training examples without end, epoch by epoch in a new order, all of them or balanced.

    Where more than `max_empty` of the examples are empty, these make up `max_empty` of the stream
    (most slices of most volumes are empty, and a network can be right by saying nothing).
    """
    source, empty = dataset.sources["train"], set(dataset.empty)

    def endless(positions: Sequence[int] | None, seed: int) -> grain.MapDataset:
        part = source if positions is None else _Subset(source, positions)
        return grain.MapDataset.source(part).seed(seed).shuffle().repeat()

    if len(empty) <= max_empty * len(source):
        return endless(None, seed)
    marked = [index for index in range(len(source)) if index not in empty]
    if not marked or max_empty == 0:
        return endless(marked or None, seed)
    parts = [endless(marked, seed), endless(sorted(empty), seed + 1)]
    return grain.MapDataset.mix(parts, weights=[1 - max_empty, max_empty]).seed(seed)


def check(data_config: Any) -> None:
    """Raises InputError, with the field's name, for what can work with no data at all."""
    for field in ("workers", "read_threads", "prefetch", "neighbours"):
        check_at_least(f"config field data.{field}", data_config[field], 0)
    check_one_of("config field data.raters", data_config.raters, RATERS)
    if not 0 <= data_config.max_empty <= 1:
        raise InputError(f"config field data.max_empty: {data_config.max_empty} is not in [0, 1]")
    Augmentation.from_config(data_config.augment)


def train_batches(
    dataset: Dataset,
    data_config: Any,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Endless shuffled, augmented batches of this process's share of the data.

    The stream of examples (order, rater, augmentation) depends on the seed alone; process i of n
    takes the i-th part of each batch, so that step s sees the same batch, row by row, however many
    processes share it.

    Args:
      dataset: from `load`.
      data_config: augment, raters, max_empty, workers, read_threads, prefetch (examples read
        ahead by each worker).
      batch_size: examples per batch of this process.
      seed: of order and augmentation.
      start_step: index of the first batch; a resumed run passes the steps already done.
      process_index: which share; default this process's.
      process_count: number of shares; default the number of processes.

    Yields:
      {"image": [b, S, S, C] float32 normalised, "mask": [b, S, S, K] float32 {0, 1}, or
      in [0, 1] where it is a mean of raters}.

    Raises:
      InputError: no training cases, or what `check` refuses.
    """
    check(data_config)
    if not len(dataset.sources["train"]):
        raise InputError(f"{dataset.name}: no case for training")
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    transform = functools.partial(
        _training_example,
        task=dataset.task,
        raters=data_config.raters,
        settings=Augmentation.from_config(data_config.augment),
    )
    stream = _shuffled(dataset, data_config.max_empty, seed).random_map(transform)
    share = _Share(stream, index * batch_size, batch_size, count * batch_size)
    # An endless stream has no remainder; without this, Grain rounds its length up beyond an index.
    batches = grain.MapDataset.source(share).batch(batch_size, drop_remainder=True)
    options = grain.ReadOptions(
        num_threads=data_config.read_threads,
        prefetch_buffer_size=max(1, data_config.prefetch // batch_size),
    )
    iterable = batches[start_step:].to_iter_dataset(options)
    if data_config.workers:
        processes = grain.multiprocessing.MultiprocessingOptions(num_workers=data_config.workers)
        iterable = iterable.mp_prefetch(processes, worker_init_fn=_ignore_sigterm)
    return iter(iterable)


def _ignore_sigterm(index: int, count: int) -> None:
    """A signal to all processes of a job is for the main one, which needs batches until it ends."""
    del index, count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def spread(total: int, count: int, task: Task) -> list[int]:
    """Which `count` of `total` examples stand for all: one of each of as many equal parts.

    Of pictures it is the first of its part, of slices any (the same at each call): with a fixed
    stride they might all have the same place in their volumes.
    """
    bounds = np.arange(count + 1) * total // max(count, 1)
    if task.modalities:
        return np.random.default_rng(0).integers(bounds[:-1], bounds[1:]).tolist()
    return bounds[:-1].tolist()


def eval_batches(
    dataset: Dataset, split: str, *, batch_size: int, max_cases: int | None = None
) -> Iterator[dict[str, np.ndarray | list[str]]]:
    """All cases of a split once, in order; the last batch is padded by repeating its last case.

    Several raters are fused to their majority: at least half of them for a binary task or
    independent regions, the most frequent class per pixel for exclusive ones.

    Args:
      dataset: from `load`.
      split: "train", "validation" or "test".
      batch_size: cases per batch.
      max_cases: where the split has more, this many of them, evenly spread.

    Yields:
      {"image": [b, S, S, C] float32 normalised, "mask": [b, S, S, K] float32 {0, 1},
      "valid": [b] float32, 0 for padding, "case": [b] uint32 CRC-32 of the id,
      "id": list of b str}.

    Raises:
      InputError: unknown split.
    """
    check_one_of("split", split, dataset.sources)
    source = dataset.sources[split]
    count = min(len(source), max_cases or len(source))
    chosen = spread(len(source), count, dataset.task)
    for start in range(0, count, batch_size):
        cases = [
            _evaluation_example(source[i], dataset) for i in chosen[start : start + batch_size]
        ]
        real = len(cases)
        cases += [cases[-1]] * (batch_size - real)
        yield {
            "image": np.stack([case["image"] for case in cases]),
            "mask": np.stack([case["mask"] for case in cases]),
            "valid": (np.arange(batch_size) < real).astype(np.float32),
            "case": np.array([case_key(case["id"]) for case in cases], dtype=np.uint32),
            "id": [case["id"] for case in cases],
        }


def _evaluation_example(example: Mapping[str, Any], dataset: Dataset) -> dict[str, Any]:
    majority = fusion.majority(example["labels"], dataset.task)
    return {
        "image": normalize(to_unit(example["image"]), dataset.task),
        "mask": labels_to_mask(majority, dataset.task).astype(np.float32),
        "id": example["id"].decode(),
    }
