"""Names shared by every layer.

Array aliases, the segmentation task, and what networks and samplers hand each other.
"""

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.struct
import jax
import numpy as np

Array = jax.Array
Params = Mapping[str, Any]
Batch = Mapping[str, Array]


class InputError(ValueError):
    """Something the user gave cannot be right; the message is one line and names the file or field.

    The commands print it and exit with status 2.
    """


def check_at_least(name: str, value: float, least: int = 1) -> None:
    """Raises InputError, with the name of what the value is, if it is less than `least`."""
    if not value >= least:  # nor is NaN
        raise InputError(f"{name}: {value} is less than {least}")


def check_one_of(name: str, value: str, known: Iterable[str]) -> None:
    """Raises InputError, with the name of what the value is, if it is none of `known`."""
    known = tuple(known)
    if value not in known:
        raise InputError(f"{name}: {value!r} is not one of {', '.join(known)}")


@dataclasses.dataclass(frozen=True)
class Modality:
    """One of the co-registered images of a volume.

    Attributes:
      name: as its files or its dataset call it, e.g. "CT" or "t1ce".
      window: intensities (HU for CT) that become 0 and 1, clipped outside; None for the 0.5 and
        99.5 percentiles of each volume, for units that mean nothing (MR).
    """

    name: str
    window: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Task:
    """What is segmented in what; belongs to the dataset and travels with every checkpoint.

    Attributes:
      classes: names of the foreground classes, in channel order.
      label_values: the integer that stands for each class in label files; same order.
      exclusive: True if a pixel has exactly one class (background included); False for
        independent, possibly overlapping regions.
      image_channels: channels C of the network's input image.
      modalities: of volumes, whose slices are the images; empty for pictures.
    """

    classes: tuple[str, ...]
    label_values: tuple[int, ...]
    exclusive: bool
    image_channels: int
    modalities: tuple[Modality, ...] = ()

    @property
    def mask_channels(self) -> int:
        """K: 1 for a binary task, background + classes if exclusive, else one per region."""
        if len(self.classes) == 1:
            return 1
        return len(self.classes) + int(self.exclusive)

    @property
    def one_hot(self) -> bool:
        """True if the K channels are one-hot with channel 0 the background (decided by argmax)."""
        return self.exclusive and len(self.classes) > 1

    @property
    def foreground(self) -> slice:
        """The channels of the K that are the classes, in their order."""
        return slice(int(self.one_hot), None)

    @property
    def label_dtype(self) -> np.dtype:
        """The smallest that holds any label: uint8, or uint16."""
        largest = max(self.label_values) if self.exclusive else sum(self.label_values)
        return np.dtype(np.uint8 if largest <= 255 else np.uint16)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, the inverse of `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Task":
        """Rebuilds a task from `to_json`'s dictionary (lists become tuples)."""
        return cls(
            classes=tuple(fields["classes"]),
            label_values=tuple(int(value) for value in fields["label_values"]),
            exclusive=bool(fields["exclusive"]),
            image_channels=int(fields["image_channels"]),
            modalities=tuple(
                Modality(one["name"], tuple(one["window"]) if one["window"] else None)
                for one in fields.get("modalities", ())
            ),
        )


def class_mask(labels: np.ndarray, task: Task, index: int) -> np.ndarray:
    """Where a label map [...] holds the class or region with this index: bool [...]."""
    value = task.label_values[index]
    overlapping = not task.exclusive and len(task.classes) > 1
    return (labels & value) != 0 if overlapping else labels == value


@flax.struct.dataclass
class Condition:
    """Everything the diffusion network needs to know of an image; computed once per image.

    The attributes are described for MedSegDiff-V2; other networks say in `encode` what they give.

    Attributes:
      anchor: [B, H, W, 1] float32 spatial gate made from the condition model's last decoder feature
        f_c^{-1}; None where the network has no anchor condition.
      embedding: [B, h, w, D] deepest feature of the condition model, c^0.
      logits: [B, H, W, K] float32, the condition model's own segmentation; None where the network
        has none (its `encode_segments` is False).
    """

    anchor: Array | None
    embedding: Array | tuple[Array, ...]
    logits: Array | None


@flax.struct.dataclass
class Drawn:
    """What the ensemble says of a batch of B cases.

    Attributes:
      members: [n, B, H, W, K] probabilities of each sample.
      condition_probability: [B, H, W, K] of the condition model alone, the mean over the views of
        the image; None where the network has no segmentation without denoising.
    """

    members: Array
    condition_probability: Array | None


@flax.struct.dataclass
class Prediction:
    """Two faces of one network answer: x_t = alpha_t x0 + sigma_t eps.

    Attributes:
      x0: [B, H, W, K] estimate of the clean mask, in [-input_scale, input_scale]; what a
        second-order step expects of its middle may lie outside.
      eps: [B, H, W, K] estimate of the noise.
    """

    x0: Array
    eps: Array


DenoiseFn = Callable[[Array, Array], Prediction]
"""(x_t [B, H, W, K], t scalar int32) -> Prediction."""


def case_key(case_id: str) -> int:
    """The number in 0..2^32-1 that stands for a case in random keys: CRC-32 of its id.

    Of a slice it is that of its volume: a member draws all slices of a volume from the same noise,
    so that it errs in all of them alike, as a rater does.
    """
    return zlib.crc32(volume_of(case_id).encode())


def slice_id(volume: str, index: int) -> str:
    """The id of a slice of a volume, which is an image of its own to the network."""
    return f"{volume}/{index:04d}"


def volume_of(case_id: str) -> str:
    """The volume that a slice belongs to; a picture is its own."""
    return case_id.rpartition("/")[0] or case_id
