"""Temperature scaling of a trained model (Guo et al. 2017): fitted on validation cases, then kept.

The fused probability p of an ensemble becomes sigmoid(logit(p) / T), or the like of a softmax. That
moves no mask, only how sure the probabilities sound: masks are decided before. T is fitted near the
borders of the references, since elsewhere almost everything is certain and right.
"""

import dataclasses
import os
from typing import Any

import numpy as np

from medsegdiff_jax import atomic, imaging, input_pipeline
from medsegdiff_jax.checkpoint import CALIBRATION, load_model
from medsegdiff_jax.fusion import OF_PROBABILITIES, majority
from medsegdiff_jax.metrics.calibration import (
    BORDER_PIXELS,
    apply_temperature,
    border_band,
    fit_temperature,
    measure_calibration,
)
from medsegdiff_jax.progress import progress
from medsegdiff_jax.segmenter import Segmenter
from medsegdiff_jax.types import InputError, volume_of

MAX_CASES = 200  # pictures or slices, spread over the split


def calibrate(checkpoint: str | os.PathLike, **settings: int | str | None) -> dict[str, Any]:
    """Fits the temperature of a checkpoint on its validation split and stores it there.

    `Segmenter`, `sample.py` and `export.py` use it from then on, where probabilities are fused, not
    votes.

    Args:
      checkpoint: a workdir (its best checkpoint) or a checkpoint in it.
      **settings: members, steps, sampler, mirror, as in `Segmenter.choose`.

    Returns:
      What is stored: {"temperature", "ece": {"before", "after"}, "cases" (pictures or volumes with
      a border), "sampling"}.

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
        _near_border(result.probability, example["labels"], segmenter)
        for result, example in zip(found, examples, strict=True)
    ]
    used = {volume_of(name) for name, (near, _) in zip(ids, pairs, strict=True) if len(near)}
    probability, reference = (np.concatenate(part) for part in zip(*pairs, strict=True))
    if not len(probability):
        raise InputError(f"{dataset.name}: no validation case has a border to calibrate on")
    exclusive = segmenter.task.one_hot
    temperature = fit_temperature(probability, reference, exclusive=exclusive)
    scaled = apply_temperature(probability, temperature, exclusive=exclusive)
    stored = {
        "temperature": temperature,
        "ece": {
            "before": measure_calibration(probability, reference).ece,
            "after": measure_calibration(scaled, reference).ece,
        },
        "cases": len(used),
        "sampling": vars(chosen),
    }
    atomic.write_json(loaded.folder / CALIBRATION, stored)
    return stored


def _near_border(
    probability: np.ndarray, labels: np.ndarray, segmenter: Segmenter
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, K] and fractions of raters [n, K] of the pixels near any class's border.

    Args:
      probability: [S, S, K].
      labels: [raters, S, S].
      segmenter: knows the task.
    """
    task = segmenter.task
    raters = np.stack([imaging.labels_to_mask(one, task) for one in labels])
    agreed = imaging.labels_to_mask(majority(labels, task), task)
    bands = (border_band(channel, (1, 1), BORDER_PIXELS) for channel in np.moveaxis(agreed, -1, 0))
    near = np.logical_or.reduce(list(bands))
    return probability[near], raters.mean(axis=0)[near]
