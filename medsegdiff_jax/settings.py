"""How to sample: the settings that `sample.py` and `Segmenter` take, and what they may be."""

import dataclasses
import numbers
from typing import Any

import numpy as np

from medsegdiff_jax import decision
from medsegdiff_jax.types import InputError, check_at_least

_KINDS = {int: numbers.Integral, float: numbers.Real, str: str, bool: (bool, np.bool_)}
_NAMES = {int: "a whole number", float: "a number", str: "a word", bool: "True or False"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to sample; the defaults of a model come from its config.

    Attributes:
      members: samples per image and training; the most of them if there is a tolerance.
      steps: denoising steps per sample; 0 = the condition model's own answer.
      sampler: one of `samplers.SAMPLERS`.
      fusion: "mean", "blend", "vote" or "staple" (see `fusion`).
      member_chunk: members sampled at once; bounds the memory.
      batch_size: images sampled at once.
      seed: of all noise, 0..2^32-1.
      tolerance: loss of Dice in 0..1 by which the mask of an image's fused members may still change
        when it gets no more of them (see `ensemble_size`); 0 = all images get all members.
      decision: "probable", or "dice" for the mask that promises the highest Dice (see `decision`);
        both of the probability before the checkpoint's temperature. A slice is decided by what is
        probable; `volume_output` decides a volume as a whole.
      mirror: pairs of members look in turn at the image and at its mirror images (see `denoiser`);
        only where training had mirrored images (`data.augment.flip`). Off for two members or one,
        which all look at the image as it is.
    """

    members: int
    steps: int
    sampler: str
    fusion: str
    member_chunk: int
    batch_size: int
    seed: int = 0
    tolerance: float = 0.0
    decision: str = "probable"
    mirror: bool = False

    def changed(self, **changes: Any) -> "Settings":
        """These settings with changes (None = unchanged).

        Raises:
          InputError: an unknown field, or a value that no model can work with.
        """
        kinds = {field.name: field.type for field in dataclasses.fields(self)}
        for name in changes:
            if name not in kinds:
                raise InputError(f"unknown setting {name!r}; there are {', '.join(sorted(kinds))}")
        values = vars(self) | {k: value for k, value in changes.items() if value is not None}
        for name, kind in kinds.items():
            value, truth = values[name], isinstance(values[name], _KINDS[bool])
            if not isinstance(value, _KINDS[kind]) or truth != (kind is bool):
                raise InputError(f"{name}: {value!r} is not {_NAMES[kind]}")
            values[name] = kind(value)  # numpy has numbers of its own
        settings = Settings(**values)
        decision.check_method(settings.decision)
        check_at_least("batch_size", settings.batch_size)
        if not 0 <= settings.tolerance < 1:
            raise InputError(f"tolerance: {settings.tolerance} is not in 0..1")
        if not 0 <= settings.seed < 2**32:
            raise InputError(f"seed: {settings.seed} is not in 0..2^32-1")
        return settings

    def for_cases(self, count: int) -> "Settings":
        """With a batch that suits so few cases, which need not be padded to a large one.

        Powers of two: not every number of images is worth a program of its own.
        """
        enough = 1 << (count - 1).bit_length()
        return dataclasses.replace(self, batch_size=min(self.batch_size, enough))
