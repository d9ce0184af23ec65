"""TFDS builder of the phantoms: lesion-like images with five raters of a known distribution."""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data import preparation
from data.phantom import appearance, model
from data.plain_folder import check_count, refuse_others, write_classes
from medsegdiff_jax.imaging import resize_image, resize_labels, write_png
from medsegdiff_jax.progress import progress
from medsegdiff_jax.types import InputError, check_one_of

_VERSION = "1.1.0"


@dataclasses.dataclass(eq=False)
class PhantomConfig(tfds.core.BuilderConfig):
    """Which phantoms.

    Attributes:
      variant: "binary" (RGB, one class) or "multiclass" (grey, lesion and core).
      image_size: side S that the native 128 x 128 grid is resized to.
    """

    variant: str = "binary"
    image_size: int = model.NATIVE_SIZE


class Builder(tfds.core.GeneratorBasedBuilder):
    """Phantoms: image [S, S, C] uint8, labels [5, S, S] uint8, size [2] and id."""

    name = "phantom"
    VERSION = tfds.core.Version(_VERSION)
    BUILDER_CONFIGS = [PhantomConfig(name=variant, variant=variant) for variant in model.TASKS]

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        task, side = model.TASKS[config.variant], config.image_size
        features = {
            "image": tfds.features.Tensor(
                shape=(side, side, task.image_channels), dtype=np.uint8, encoding="bytes"
            ),
            "labels": tfds.features.Tensor(
                shape=(model.RATERS, side, side), dtype=np.uint8, encoding="bytes"
            ),
            "size": tfds.features.Tensor(shape=(2,), dtype=np.int32, encoding="bytes"),
            "id": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Lesion-like images with raters drawn from a known distribution.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(
                task=task.to_json(),
                report=_report(config),
                fingerprint=_fingerprint(config),
                empty=[],  # every rater marks something
            ),
            disable_shuffling=True,
        )

    @classmethod
    def prepare(cls, data_config: Any) -> tuple[Path, tuple[str, ...]]:
        """Draws the phantoms of `data_config`, or finds them drawn.

        Args:
          data_config: variant, image_size, cache_dir.

        Returns:
          the folder of the prepared dataset, and no notes.

        Raises:
          InputError: unknown variant, folds, or an image size below 1.
        """
        variant = _checked_variant(data_config)
        if data_config.image_size < 1:
            raise InputError("data.image_size: must be at least 1")
        config = PhantomConfig(
            name=f"{variant}_size{data_config.image_size}",
            variant=variant,
            image_size=data_config.image_size,
        )
        cache = preparation.cache_root(data_config.cache_dir)
        with preparation.locked(cache, cls.name):
            with preparation.quiet_tfds():
                builder = cls(config=config, data_dir=str(cache), file_format="array_record")
            return preparation.write(builder), ()

    @classmethod
    def write_split(cls, data_config: Any, split: str, output: Path, count: int | None) -> None:
        """Writes the first `count` cases of a split as a plain folder (None: all of them).

        The cases are those of the dataset, in the size they are drawn in; a rater's labels go to
        masks_1/ ... masks_5/.

        Raises:
          InputError: unknown variant, fewer cases than `count`, or other cases in `output`.
        """
        variant = _checked_variant(data_config)
        total = check_count(count, split, model.SPLIT_SIZES[split])
        cases = [model.case_id(variant, split, number) for number in range(total)]
        refuse_others(output, set(cases))
        for case in progress(cases, total, f"writing {split}"):
            write_png(output / "images" / f"{case}.png", appearance.render(case))
            for rater, labels in enumerate(model.stored_raters(case), 1):
                write_png(output / f"masks_{rater}" / f"{case}.png", labels)
        write_classes(output, model.TASKS[variant])

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._generate_examples(split) for split in model.SPLIT_SIZES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        size = (config.image_size, config.image_size)
        numbers = range(model.SPLIT_SIZES[split])
        for number in progress(numbers, len(numbers), f"drawing {split}"):
            case = model.case_id(config.variant, split, number)
            labels = [resize_labels(rater, size) for rater in model.stored_raters(case)]
            yield (
                number,
                {
                    "image": resize_image(appearance.render(case), size),
                    "labels": np.stack(labels),
                    "size": np.array([model.NATIVE_SIZE] * 2, dtype=np.int32),
                    "id": case,
                },
            )


def _checked_variant(data_config: Any) -> str:
    """`data.variant`, "" stands for the first; InputError for a wrong field."""
    variant = data_config.variant or next(iter(model.TASKS))
    check_one_of("data.variant", variant, model.TASKS)
    if data_config.folds:
        raise InputError("data.folds: the phantoms of a split are given by their names")
    return variant


def _fingerprint(config: PhantomConfig) -> str:
    key = f"phantom {_VERSION} {model.SEED} {config.variant} {config.image_size}"
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _report(config: PhantomConfig) -> str:
    task = model.TASKS[config.variant]
    counts = ", ".join(f"{split} {count}" for split, count in model.SPLIT_SIZES.items())
    return (
        f"  cases   {counts}\n"
        f"  images  {task.image_channels} channels, {config.image_size}x{config.image_size} from "
        f"{model.NATIVE_SIZE}x{model.NATIVE_SIZE}\n"
        f"  masks   {model.RATERS} per case; classes {', '.join(task.classes)}"
    )
