"""The TFDS builder that every dataset of images or volumes derives from.

    catalogue (names) -> fingerprint (contents) -> staged cases -> survey (task) -> records

A builder of a dataset is its catalogue and a few words; see `SegmentationBuilder`.
"""

import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from data import preparation
from data.catalogue import Catalogue, cross_validation
from data.fingerprint import digests, fingerprint, leaks
from data.plain_folder import check_count, write_cases
from data.staging import VERSION, Options, default_threads, stage, with_windows
from data.survey import survey
from medsegdiff_jax.imaging import match_channels
from medsegdiff_jax.progress import progress
from medsegdiff_jax.types import InputError, slice_id


class SegmentationBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Pictures, or slices of volumes, with the annotations of every rater.

    An example is image [S, S, C] (uint8, uint16 or float32), labels [raters, S, S] in the label
    values of the task, by those who annotated the case, size [2] (height and width of the file's
    picture or slice), slice and depth (its number in its volume and their count; 0 and 1 for
    pictures), and id. `info.metadata` holds the task, the report, the fingerprint and, of the
    training split, the positions of examples that no rater marked. Slices of a volume follow each
    other, in the order of `volumes.PLANES`.

    Class attributes of a dataset: name, description, homepage, licence, instructions (what to
    download and where to put it, one line), variants (values of `data.variant`; the first one is
    meant by ""). CITATIONS.bib lies beside its module.
    """

    VERSION = tfds.core.Version(VERSION)
    description: ClassVar[str] = ""
    homepage: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    instructions: ClassVar[str] = ""
    variants: ClassVar[tuple[str, ...]] = ("",)

    @classmethod
    def catalogue(cls, root: Path, variant: str, validation_fraction: float) -> Catalogue:
        """The cases below `root`, by names alone.

        Args:
          root: `data.path`, an existing folder.
          variant: one of `variants`.
          validation_fraction: in [0, 1), share of the training cases where no split says which.

        Raises:
          InputError: the folder cannot be right.
        """
        raise NotImplementedError

    @classmethod
    def prepare(cls, data_config: Any) -> tuple[Path, tuple[str, ...]]:
        """Prepares the data of a config, or finds them prepared.

        Args:
          data_config: path, variant, image_size, plane, window, validation_fraction, folds, fold,
            cache_dir.

        Returns:
          the folder of the prepared dataset, and notes on the folder that the data come from: the
          same contents may lie among other files the next time.

        Raises:
          InputError: no path, or data that cannot be right.
        """
        window = tuple(data_config.window)
        options = Options(data_config.image_size, data_config.plane, window)
        cache = preparation.cache_root(data_config.cache_dir)
        catalogue = cls._catalogue(data_config)
        with preparation.locked(cache, cls.name):
            contents = digests(catalogue, cache / "digests", default_threads())
            digest = _fingerprint(catalogue, contents, options)
            prepared = cache / cls.name / _config_name(options, digest) / VERSION
            if not (prepared / "dataset_info.json").is_file():
                with preparation.quiet_tfds():
                    builder = cls(catalogue, contents, digest, options, cache)
                preparation.write(builder)
                builder.forget_staged()
        return prepared, catalogue.notes

    @classmethod
    def write_split(cls, data_config: Any, split: str, output: Path, count: int | None) -> None:
        """Writes the first `count` cases of a split as a plain folder (None: all of them).

        Raises:
          InputError: data that cannot be right, or fewer cases than `count`.
        """
        catalogue = cls._catalogue(data_config)
        cases = catalogue.splits.get(split, ())
        write_cases(catalogue, cases[: check_count(count, split, len(cases))], output)

    @classmethod
    def _catalogue(cls, data_config: Any) -> Catalogue:
        """`catalogue` with its arguments checked, or its fold."""
        if not data_config.path:
            raise InputError(f"data.path: give the folder of the dataset. {cls.instructions}")
        root = Path(data_config.path).expanduser().resolve()
        if not root.is_dir():
            raise InputError(f"data.path: no folder at {root}. {cls.instructions}")
        if not 0 <= data_config.validation_fraction < 1:
            raise InputError("data.validation_fraction: must be at least 0 and below 1")
        variant = data_config.variant or cls.variants[0]
        if variant not in cls.variants:
            known = ", ".join(repr(one) for one in cls.variants)
            raise InputError(f"data.variant: {variant!r} is not one of {known}")
        folds, fold = data_config.folds, data_config.fold
        if fold and not folds:
            raise InputError(f"data.fold: {fold} needs data.folds, the number of folds")
        catalogue = cls.catalogue(root, variant, data_config.validation_fraction)
        if folds:
            splits = cross_validation(catalogue.splits, folds, fold)
            notes = (*catalogue.notes, f"cross-validation: fold {fold} of 0..{folds - 1} validates")
            catalogue = dataclasses.replace(catalogue, splits=splits, notes=notes)
        if not catalogue.splits.get("train"):
            raise InputError(f"{root}: no case is left for training")
        return catalogue

    def __init__(
        self,
        catalogue: Catalogue,
        contents: Mapping[Path, str],
        digest: str,
        options: Options,
        cache: Path,
    ) -> None:
        """Reads, checks and stages the cases in the cache; `prepare` is the usual way in.

        Args:
          catalogue: the cases.
          contents: file of theirs -> digest of its contents.
          digest: the fingerprint of all that the examples depend on.
          options: how cases become examples.
          cache: where the dataset will lie.

        Raises:
          InputError: data that cannot be right.
        """
        self._fingerprint, threads = digest, default_threads()
        folder = cache / "staged" / self.name
        catalogue = with_windows(catalogue, contents, options, folder, threads)
        self._staged = stage(catalogue, contents, options, folder, threads)
        facts = [case.facts for case in self._staged]
        self._survey = survey(catalogue, facts, leaks(catalogue, contents))
        self._splits, self._side = catalogue.splits, options.image_size
        counts = {len(case.annotations) for case in catalogue.cases}
        self._raters = counts.pop() if len(counts) == 1 else None  # a number of each case's own
        config = tfds.core.BuilderConfig(name=_config_name(options, digest))
        super().__init__(config=config, data_dir=str(cache), file_format="array_record")

    def forget_staged(self) -> None:
        """Removes the staged cases, once the records are written."""
        for case in self._staged:
            case.path.unlink(missing_ok=True)

    def _info(self) -> tfds.core.DatasetInfo:
        side, task = self._side, self._survey.task
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Tensor(
                    shape=(side, side, task.image_channels),
                    dtype=self._survey.dtype,
                    encoding="bytes",
                ),
                "labels": tfds.features.Tensor(
                    shape=(self._raters, side, side), dtype=task.label_dtype, encoding="bytes"
                ),
                "size": tfds.features.Tensor(shape=(2,), dtype=np.int32, encoding="bytes"),
                "slice": tfds.features.Tensor(shape=(), dtype=np.int32, encoding="bytes"),
                "depth": tfds.features.Tensor(shape=(), dtype=np.int32, encoding="bytes"),
                "id": tfds.features.Text(),
            }
        )
        citations = Path(inspect.getfile(type(self))).parent / "CITATIONS.bib"
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            homepage=self.homepage,
            license=self.licence,
            citation=citations.read_text("utf-8") if citations.is_file() else None,
            features=features,
            metadata=tfds.core.MetadataDict(
                task=task.to_json(),
                report=self._survey.report,
                fingerprint=self._fingerprint,
                empty=self._empty(),
            ),
            disable_shuffling=True,  # slices of a volume stay together
        )

    def _empty(self) -> list[int]:
        """Positions of the training examples that no rater marked."""
        training = self._staged[slice(*self._ranges()["train"])]
        flags = np.concatenate([case.facts.empty for case in training])
        return np.flatnonzero(flags).tolist()

    def _ranges(self) -> dict[str, tuple[int, int]]:
        """Split -> first and last + 1 number of its cases."""
        ends = np.cumsum([len(cases) for cases in self._splits.values()]).tolist()
        return dict(zip(self._splits, zip([0, *ends], ends, strict=False), strict=True))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {
            split: self._generate_examples(split, first, last)
            for split, (first, last) in self._ranges().items()
            if last > first
        }

    def _generate_examples(
        self, split: str, first: int, last: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        task, key = self._survey.task, 0
        for number in progress(range(first, last), last - first, f"writing {split}"):
            case = self._splits[split][number - first]
            staged = self._staged[number]
            images, labels = staged.load()
            for index, (image, raters) in enumerate(zip(images, labels, strict=True)):
                yield (
                    key,
                    {
                        "image": match_channels(image, task.image_channels),
                        "labels": raters.astype(task.label_dtype),
                        "size": np.array(staged.facts.plane, dtype=np.int32),
                        "slice": np.int32(index),
                        "depth": np.int32(len(images)),
                        "id": slice_id(case.id, index) if task.modalities else case.id,
                    },
                )
                key += 1


def _fingerprint(catalogue: Catalogue, contents: Mapping[Path, str], options: Options) -> str:
    """What the examples are made of, and how."""
    task = catalogue.task.to_json() if catalogue.task else None
    settings = {**vars(options), "task": task, "version": VERSION}
    return fingerprint(catalogue, contents, json.loads(json.dumps(settings)))


def _config_name(options: Options, digest: str) -> str:
    """Of the TFDS config, which is a folder in the cache."""
    return f"size{options.image_size}_{digest}"
