"""Training that starts from the weights of another: fine-tuning, as on the scans of one's own.

The network is the same, the task need not be: arrays whose shape follows from the numbers of
channels or classes, or from the size of the images, begin anew where these differ.
"""

import dataclasses
import logging
import os
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from medsegdiff_jax.checkpoint import LoadedModel, load_model, network_of
from medsegdiff_jax.train_state import TrainState
from medsegdiff_jax.trees import differing
from medsegdiff_jax.types import Array, InputError, Params

_log = logging.getLogger("medsegdiff_jax")


def load_start(path: str | os.PathLike, config: Any) -> LoadedModel:
    """The model that a training of this config may start from; its weights stay on the host.

    Args:
      path: a workdir (its best checkpoint), a checkpoint in it, or an exported folder.
      config: the whole config.

    Raises:
      InputError: no model at `path`, or one of another network or process.
    """
    try:
        found = load_model(path)
    except InputError as error:
        raise InputError(f"config field init_from: {error}") from error
    if fields := differing(*(network_of(tree) for tree in (found.config, config))):
        raise InputError(
            f"config field init_from: {path} was trained with another {', '.join(fields[:5])}"
        )
    return dataclasses.replace(found, params=jax.device_get(found.params))


def start_from(state: TrainState, found: LoadedModel) -> TrainState:
    """A fresh state with the averaged weights of a trained model, as far as they fit.

    Args:
      state: its arrays may lie on several devices, and stay there.
      found: from `load_start`.

    Raises:
      InputError: nothing fits.
    """
    given = flatten_dict(found.params, sep="/")
    shapes = {name: leaf.shape for name, leaf in flatten_dict(state.params, sep="/").items()}
    fitting = {name for name, leaf in given.items() if shapes.get(name) == leaf.shape}
    if not fitting:
        raise InputError(f"config field init_from: no array of {found.description} fits")
    anew = [name for name in shapes if name not in fitting]
    more = f" and {len(anew) - 5} more" if len(anew) > 5 else ""
    _log.info(
        "starting from %s%s",
        found.description,
        f"; drawn anew: {', '.join(anew[:5])}{more} (of {len(shapes)} arrays)" if anew else "",
    )

    def filled(params: Params) -> Params:
        fresh = flatten_dict(params, sep="/")
        taken = {
            name: _placed_like(leaf, given[name]) for name, leaf in fresh.items() if name in fitting
        }
        return unflatten_dict(fresh | taken, sep="/")

    return state.replace(params=filled(state.params), ema_params=filled(state.ema_params))


def _placed_like(leaf: Array, values: np.ndarray) -> Array:
    """`values` in the place and with the type of `leaf`; every process has them all."""
    values = values.astype(leaf.dtype)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: values[index])
