"""Networks by config name. A network sees arrays; it knows no schedule, loss or dataset."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from medsegdiff_jax.networks.layers import dtype_of
from medsegdiff_jax.networks.medsegdiff import MedSegDiffV2
from medsegdiff_jax.networks.unet import PlainUNet
from medsegdiff_jax.types import InputError, Task

__all__ = ["MedSegDiffV2", "PlainUNet", "build"]


def build(model: Mapping[str, Any], task: Task, image_size: int) -> nn.Module:
    """Turns config.model into a module for `task`.

    Args:
      model: the fields of config.model; `name` is "medsegdiff_v2" or "unet", which is the condition
        model of the same config, alone.
      task: gives the number of mask channels.
      image_size: side S of the training images.

    Raises:
      InputError: unknown name or dtype, or S not divisible by what the levels need.
    """
    fields = dict(model)
    name = fields.pop("name")
    if fields["dtype"] not in ("float32", "bfloat16"):
        raise InputError(
            f"config field model.dtype: {fields['dtype']!r} is not float32 or bfloat16"
        )
    fields["dtype"] = dtype_of(fields["dtype"])
    for key in ("widths", "condition_widths"):
        fields[key] = tuple(fields[key])
    multiple = 2 ** (len(fields["condition_widths"]) - 1) * fields["semantic_patch"]
    if image_size % multiple:
        raise InputError(
            f"config field data.image_size: {image_size} is not a multiple of {multiple}, "
            "which the levels and patches of this model need"
        )
    if name == "medsegdiff_v2":
        return MedSegDiffV2(mask_channels=task.mask_channels, **fields)
    if name == "unet":
        return PlainUNet(
            task.mask_channels,
            fields["condition_widths"],
            fields["condition_blocks"],
            fields["dtype"],
            fields["remat"],
        )
    raise InputError(f"config field model.name: {name!r} is not medsegdiff_v2 or unet")
