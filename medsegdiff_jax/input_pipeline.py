"""From prepared datasets to batches: TFDS array_record read through Grain, without TensorFlow.

The only place where stored pixels become float for training. A batch is a pure function of the
configuration, the seed and the step: nothing about the position needs to be saved.
"""

import dataclasses
import functools
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds

from medsegdiff_jax import fusion
from medsegdiff_jax.augment import Augmentation, augment
from medsegdiff_jax.imaging import labels_to_mask, normalize, to_unit
from medsegdiff_jax.types import InputError, Task, case_key

DATASETS = ("folder", "phantom")
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared dataset.

    Attributes:
      name: "folder" or "phantom".
      task: what is segmented.
      fingerprint: changes when the data or their preparation change.
      image_shape: (S, S, C).
      normalization: "zscore" or "unit", see `imaging.normalize`.
      report: what was found in the data, a few lines of text.
      sources: split -> random-access source of {"image" [S, S, C] as stored, "labels"
        [raters, S, S] label values, "id" bytes}; a split without cases is an empty sequence.
    """

    name: str
    task: Task
    fingerprint: str
    image_shape: tuple[int, int, int]
    normalization: str
    report: str
    sources: Mapping[str, Sequence[Mapping[str, Any]]]


def load(data_config: Any) -> Dataset:
    """Opens the dataset of a config, preparing it first if it is not in the cache.

    Args:
      data_config: the config node `data` (name, path or variant, image_size, cache_dir,
        validation_fraction, normalization).

    Raises:
      InputError: unknown dataset, or data that cannot be right.
    """
    if data_config.name not in DATASETS:
        raise InputError(f"data.name: {data_config.name!r} is not one of {', '.join(DATASETS)}")
    if data_config.normalization not in ("zscore", "unit"):
        raise InputError(
            f"data.normalization: {data_config.normalization!r} is not one of 'zscore', 'unit'"
        )
    package = importlib.import_module(f"data.{data_config.name}")
    builder = tfds.builder_from_directory(package.prepare(data_config))
    metadata = builder.info.metadata
    return Dataset(
        name=data_config.name,
        task=Task.from_json(metadata["task"]),
        fingerprint=metadata["fingerprint"],
        image_shape=builder.info.features["image"].shape,
        normalization=data_config.normalization,
        report=metadata["report"],
        sources={
            split: builder.as_data_source(split=split) if split in builder.info.splits else ()
            for split in SPLITS
        },
    )


def _training_example(
    example: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    task: Task,
    normalization: str,
    settings: Augmentation,
) -> dict[str, np.ndarray]:
    """One augmented example with the labels of one rater, drawn at random."""
    labels = example["labels"][rng.integers(len(example["labels"]))]
    image, labels = augment(to_unit(example["image"]), labels, rng, settings)
    mask = labels_to_mask(labels, task).astype(np.float32)
    return {"image": normalize(image, normalization), "mask": mask}


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
    takes every n-th of it, so that step s sees the same examples however many processes share them.

    Args:
      dataset: from `load`.
      data_config: augment, read_threads, prefetch (examples read ahead).
      batch_size: examples per batch of this process.
      seed: of order and augmentation.
      start_step: index of the first batch; a resumed run passes the steps already done.
      process_index: which share; default this process's.
      process_count: number of shares; default the number of processes.

    Yields:
      {"image": [b, S, S, C] float32 normalised, "mask": [b, S, S, K] float32 {0, 1}}.

    Raises:
      InputError: no training cases, or a wrong augmentation field.
    """
    source = dataset.sources["train"]
    if not len(source):
        raise InputError(f"{dataset.name}: no case for training")
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    transform = functools.partial(
        _training_example,
        task=dataset.task,
        normalization=dataset.normalization,
        settings=Augmentation.from_config(data_config.augment),
    )
    stream = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(transform)
    # An endless stream has no remainder; without this, Grain rounds its length up beyond an index.
    batches = stream[index::count].batch(batch_size, drop_remainder=True)
    options = grain.ReadOptions(
        num_threads=data_config.read_threads,
        prefetch_buffer_size=max(1, data_config.prefetch // batch_size),
    )
    iterator = iter(batches.to_iter_dataset(options))
    iterator.set_state({"next_index": start_step})
    return iterator


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
    if split not in dataset.sources:
        raise InputError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    source = dataset.sources[split]
    count = min(len(source), max_cases or len(source))
    chosen = [i * len(source) // count for i in range(count)]
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
    masks = labels_to_mask(example["labels"], dataset.task)
    majority = fusion.decide(masks.mean(axis=0), dataset.task)
    return {
        "image": normalize(to_unit(example["image"]), dataset.normalization),
        "mask": majority.astype(np.float32),
        "id": example["id"].decode(),
    }
