"""Temperature scaling of a trained model (Guo et al. 2017): fitted on validation cases, then kept.

The fused probability p of an ensemble becomes sigmoid(logit(p) / T), or the like of a softmax. That
moves no mask, only how sure the probabilities sound: masks are decided before. T is fitted near the
borders of the references, since elsewhere almost everything is certain and right. It moves the
probabilities there, too, which may be the worse for it; so the Brier score of whole images is
measured beside the error near borders.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from medsegdiff_jax import atomic, imaging, input_pipeline
from medsegdiff_jax.checkpoint import CALIBRATION, load_model
from medsegdiff_jax.fusion import OF_PROBABILITIES, majority
from medsegdiff_jax.metrics.calibration import (
    BORDER_PIXELS,
    Calibration,
    apply_temperature,
    border_band,
    fit_temperature,
    measure_calibration,
)
from medsegdiff_jax.progress import progress
from medsegdiff_jax.segmenter import Segmenter
from medsegdiff_jax.types import InputError, Task, volume_of

MAX_CASES = 200  # pictures or slices, spread over the split
_GRID = 64  # pixels of a side, about, that stand for a whole image


class _Pixels(NamedTuple):
    """Fused probabilities [n, K] of pixels, and the fractions of raters [n, K] that mark them."""

    probability: np.ndarray
    reference: np.ndarray


def calibrate(checkpoint: str | os.PathLike, **settings: int | str | None) -> dict[str, Any]:
    """Fits the temperature of a checkpoint on its validation split and stores it there.

    `Segmenter`, `sample.py` and `export.py` use it from then on, where probabilities are fused, not
    votes.

    Args:
      checkpoint: a workdir (its best checkpoint) or a checkpoint in it.
      **settings: members, steps, sampler, mirror, as in `Segmenter.choose`.

    Returns:
      What is stored: {"temperature", "ece" near borders: {"before", "after"}, "brier" of whole
      images: {"before", "after"}, "cases" (pictures or volumes with a border), "sampling"}.

    Raises:
      InputError: no model there, an exported one, data that have changed since the training, or no
        validation case with a border.
    """
    loaded = dataclasses.replace(load_model(checkpoint), temperature=1.0)
    if loaded.folder is None:
        raise InputError(f"{checkpoint}: is exported; calibrate its workdir, then export again")
    segmenter = Segmenter(loaded)
    fused_by = segmenter.settings.fusion
    fused_by = fused_by if fused_by in OF_PROBABILITIES else "mean"
    chosen = segmenter.choose(**settings, fusion=fused_by)
    dataset = input_pipeline.load(loaded.config.data)
    if dataset.fingerprint != loaded.metadata["fingerprint"]:
        raise InputError(f"{checkpoint}: the dataset has changed since this training began")
    source = dataset.sources["validation"]
    count = min(MAX_CASES, len(source))
    examples = [source[i] for i in input_pipeline.spread(len(source), count, dataset.task)]
    ids = [example["id"].decode() for example in examples]
    images = ((name, example["image"]) for name, example in zip(ids, examples, strict=True))
    found = progress(segmenter.stream(images, chosen), count, "calibrating")
    pairs = [
        _pixels(result.probability, example["labels"], segmenter.task)
        for result, example in zip(found, examples, strict=True)
    ]
    with_border = {
        volume_of(name) for name, (near, _) in zip(ids, pairs, strict=True) if len(near.reference)
    }
    if not with_border:
        raise InputError(f"{dataset.name}: no validation case has a border to calibrate on")
    near, whole = (_joined(parts) for parts in zip(*pairs, strict=True))
    temperature = fit_temperature(*near, one_hot=segmenter.task.one_hot)
    at_border, everywhere = (_compare(one, temperature, segmenter.task) for one in (near, whole))
    stored = {
        "temperature": temperature,
        "ece": {when: found.ece for when, found in at_border.items()},
        "brier": {when: found.brier for when, found in everywhere.items()},
        "cases": len(with_border),
        "sampling": vars(chosen),
    }
    atomic.write_json(loaded.folder / CALIBRATION, stored)
    return stored


def _joined(parts: Sequence[_Pixels]) -> _Pixels:
    return _Pixels(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _compare(pixels: _Pixels, temperature: float, task: Task) -> dict[str, Calibration]:
    scaled = apply_temperature(pixels.probability, temperature, one_hot=task.one_hot)
    return {
        "before": measure_calibration(*pixels),
        "after": measure_calibration(scaled, pixels.reference),
    }


def _pixels(probability: np.ndarray, labels: np.ndarray, task: Task) -> tuple[_Pixels, _Pixels]:
    """Those near any class's border, and a grid over the whole image.

    Args:
      probability: [S, S, K].
      labels: [raters, S, S].
      task: says what labels mean.
    """
    raters = np.stack([imaging.labels_to_mask(one, task) for one in labels])
    agreed = imaging.labels_to_mask(majority(labels, task), task)
    bands = (border_band(channel, (1, 1), BORDER_PIXELS) for channel in np.moveaxis(agreed, -1, 0))
    near = np.logical_or.reduce(list(bands))
    reference = raters.mean(axis=0)
    grid = np.zeros_like(near)
    stride = -(-len(grid) // _GRID)
    grid[::stride, ::stride] = True
    border, whole = (_Pixels(probability[chosen], reference[chosen]) for chosen in (near, grid))
    return border, whole
