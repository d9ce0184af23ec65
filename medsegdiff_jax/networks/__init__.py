"""Networks by config name. A network sees arrays; it knows no schedule, loss or dataset."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from medsegdiff_jax.networks.ensdiff import EnsDiff
from medsegdiff_jax.networks.interface import Discriminative, Generative
from medsegdiff_jax.networks.medsegdiff import MedSegDiffV2
from medsegdiff_jax.networks.medsegdiff_v1 import MedSegDiffTransUNet, MedSegDiffV1
from medsegdiff_jax.networks.segdiff import SegDiff
from medsegdiff_jax.networks.swin_unetr import SwinUNETR
from medsegdiff_jax.networks.transunet import TransUNet
from medsegdiff_jax.networks.unet import PlainUNet
from medsegdiff_jax.types import InputError, Task, check_at_least, check_one_of

NETWORKS: dict[str, type[Generative] | type[Discriminative]] = {
    "medsegdiff_v2": MedSegDiffV2,
    "medsegdiff_v1": MedSegDiffV1,
    "medsegdiff_transunet": MedSegDiffTransUNet,
    "ensdiff": EnsDiff,
    "segdiff": SegDiff,
    "unet": PlainUNet,
    "transunet": TransUNet,
    "swin_unetr": SwinUNETR,
}

_WIDTHS = {"widths", "condition_widths"}


def build(model: Mapping[str, Any], task: Task, image_size: int) -> Generative | Discriminative:
    """Turns config.model into a module for `task`.

    A network takes those fields of config.model that have the names of its attributes.

    Args:
      model: the fields of config.model; `name` is one of `NETWORKS`.
      task: says how many mask channels there are and whether they are exclusive.
      image_size: side S of the training images.

    Raises:
      InputError: see `check`.
    """
    check(model, image_size)
    return _network(model, task.mask_channels, task.one_hot)


def check(model: Mapping[str, Any], image_size: int) -> None:
    """What is known to be wrong with config.model before there are data.

    Raises:
      InputError: unknown name or dtype, a number less than 1, no level, S not divisible by what the
        levels need, or what the network itself refuses.
    """
    check_one_of("config field model.name", model["name"], NETWORKS)
    fields = _fields(model["name"], model)
    check_one_of("config field model.dtype", fields["dtype"], ("float32", "bfloat16"))
    for name, value in fields.items():
        for number in value if name in _WIDTHS else (value,):
            if type(number) is int:  # widths and counts: there is nothing with none of them
                check_at_least(f"config field model.{name}", number)
        if name in _WIDTHS and not value:
            raise InputError(f"config field model.{name}: there is no level")
    levels = max((len(fields[name]) for name in _WIDTHS & fields.keys()), default=1)
    patch = 1 if fields.get("semantic") == "none" else fields.get("semantic_patch", 1)
    multiple = 2 ** (levels - 1) * patch
    if image_size < 1 or image_size % multiple:
        raise InputError(
            f"config field data.image_size: {image_size} is not a multiple of {multiple}, "
            "which the levels and patches of this model need"
        )
    _network(model, mask_channels=1, one_hot=False)  # a network checks fields of its own


def has_prior(model: Mapping[str, Any]) -> bool:
    """Whether a network adds its condition's logits to its output, which then must be logits."""
    return bool(_fields(model["name"], model).get("condition_prior"))


def _network(
    model: Mapping[str, Any], mask_channels: int, one_hot: bool
) -> Generative | Discriminative:
    given = {**model, "mask_channels": mask_channels, "one_hot": one_hot}
    fields = _fields(model["name"], given)
    fields["dtype"] = jnp.dtype(fields["dtype"])
    for name in _WIDTHS & fields.keys():
        fields[name] = tuple(fields[name])
    return NETWORKS[model["name"]](**fields)


def _fields(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the fields that the network of this name takes."""
    wanted = {field.name for field in dataclasses.fields(NETWORKS[name])} - {"name"}  # Flax's own
    return {field: value for field, value in given.items() if field in wanted}
