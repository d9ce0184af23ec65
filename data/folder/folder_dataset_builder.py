"""TFDS builder for the user's own folder: images/ with masks/ or masks_<rater>/."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data import preparation
from data.folder.index import Case, build_index, fingerprint
from data.folder.survey import survey
from medsegdiff_jax.imaging import (
    match_channels,
    read_image,
    read_labels,
    resize_image,
    resize_labels,
)
from medsegdiff_jax.types import InputError, Task

_VERSION = "1.0.0"


class Builder(tfds.core.GeneratorBasedBuilder):
    """A folder of 2-D cases, resized to one square size, read by `as_data_source`.

    An example is image [S, S, C] in the depth of the files (uint8, uint16 or float32), labels
    [raters, S, S] with the label values of the files, size [2] (height and width of the file) and
    id (the stem). `info.metadata` holds the task, the report and the fingerprint.

    Args:
      path: the folder.
      image_size: side S in pixels.
      validation_fraction: share of the training cases used where no validation list is given.
      **kwargs: `data_dir` and `file_format`, as in every TFDS builder.

    Raises:
      InputError: the folder cannot be right; see README.md for the list.
    """

    name = "folder"
    VERSION = tfds.core.Version(_VERSION)

    def __init__(
        self, *, path: str, image_size: int, validation_fraction: float = 0.1, **kwargs: Any
    ) -> None:
        """Reads and checks the folder; writes nothing before `download_and_prepare`."""
        root = Path(path).expanduser().resolve()
        self._side = image_size
        self._index = build_index(root, validation_fraction)
        self._survey = survey(self._index, threads=min(8, os.cpu_count() or 1))
        memo = preparation.cache_root(kwargs.get("data_dir") or "") / "folder_index"
        self._fingerprint = _fingerprint(self._index, image_size, memo)
        config = tfds.core.BuilderConfig(name=_config_name(image_size, self._fingerprint))
        super().__init__(config=config, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        side, task = self._side, self._survey.task
        raters = len(self._index.raters)
        features = {
            "image": tfds.features.Tensor(
                shape=(side, side, task.image_channels), dtype=self._survey.dtype, encoding="bytes"
            ),
            "labels": tfds.features.Tensor(
                shape=(raters, side, side), dtype=_label_dtype(task), encoding="bytes"
            ),
            "size": tfds.features.Tensor(shape=(2,), dtype=np.int32, encoding="bytes"),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="A folder of 2-D images and masks.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(
                task=task.to_json(), report=self._survey.report, fingerprint=self._fingerprint
            ),
            disable_shuffling=True,  # keeps the order of the lists
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        splits = self._index.splits.items()
        return {name: self._generate_examples(name, cases) for name, cases in splits if cases}

    def _generate_examples(
        self, split: str, cases: tuple[Case, ...]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        bar = tqdm(cases, desc=f"preparing {split}", unit="case", disable=None)
        for number, case in enumerate(bar):
            yield number, self._example(case)

    def _example(self, case: Case) -> dict[str, Any]:
        task, size = self._survey.task, (self._side, self._side)
        image = read_image(case.image)
        labels = [_resize(read_labels(path), size, task) for path in case.masks]
        return {
            "image": match_channels(resize_image(image, size), task.image_channels),
            "labels": np.stack(labels).astype(_label_dtype(task)),
            "size": np.array(image.shape[:2], dtype=np.int32),
            "id": case.id,
        }


def _label_dtype(task: Task) -> np.dtype:
    return np.dtype(np.uint8 if sum(task.label_values) <= 255 else np.uint16)


def _resize(labels: np.ndarray, size: tuple[int, int], task: Task) -> np.ndarray:
    """Area majority; of each region on its own where regions overlap."""
    if task.exclusive:
        return resize_labels(labels, size)
    return sum(resize_labels(labels & value, size) for value in task.label_values)


def _config_name(image_size: int, digest: str) -> str:
    return f"size{image_size}_{digest}"


def _fingerprint(index: Any, image_size: int, memo: Path) -> str:
    return fingerprint(index, {"image_size": image_size, "version": _VERSION}, memo)


def prepare(data_config: Any) -> Path:
    """Prepares the folder `data_config.path`, or finds it prepared; returns the dataset's folder.

    Args:
      data_config: path, image_size, validation_fraction, cache_dir.

    Raises:
      InputError: no path given, or the folder cannot be right.
    """
    if not data_config.path:
        raise InputError("data.path: give the folder with images/ and masks/")
    if data_config.image_size < 1:
        raise InputError("data.image_size: must be at least 1")
    cache = preparation.cache_root(data_config.cache_dir)
    index = build_index(
        Path(data_config.path).expanduser().resolve(), data_config.validation_fraction
    )
    digest = _fingerprint(index, data_config.image_size, cache / "folder_index")
    prepared = cache / "folder" / _config_name(data_config.image_size, digest) / _VERSION
    if (prepared / "dataset_info.json").is_file():
        return prepared
    with preparation.quiet_tfds():
        builder = Builder(
            path=data_config.path,
            image_size=data_config.image_size,
            validation_fraction=data_config.validation_fraction,
            data_dir=str(cache),
            file_format="array_record",
        )
    return preparation.write(builder)
