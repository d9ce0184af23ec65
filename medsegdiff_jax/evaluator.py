"""Validation during training: real sampling with the averaged weights, scored per case."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from medsegdiff_jax import denoiser, display, fusion, input_pipeline, metrics
from medsegdiff_jax.input_pipeline import Dataset
from medsegdiff_jax.partitioning import (
    even_batch,
    on_data,
    replicated,
    sampling_mesh,
    shard_shared,
)
from medsegdiff_jax.process import Process
from medsegdiff_jax.types import InputError, Params, Task, volume_of

PICTURES = 4  # cases shown in TensorBoard

_Pair = tuple[np.ndarray, np.ndarray]


class Validation:
    """Scores parameters on a split of the dataset, at training resolution."""

    def __init__(self, config: Any, dataset: Dataset, model: nn.Module, process: Process):
        """Jits the ensemble.

        Args:
          config: the whole config; its `validation` node holds members, steps, sampler, fusion,
            member_chunk, batch_size and max_cases.
          dataset: its "validation" split is scored; with max_cases, evenly spread cases of it.
          model, process: what is trained.

        Raises:
          InputError: an impossible sampling setting, or no validation case.
        """
        if not len(dataset.sources["validation"]):
            raise InputError(f"{dataset.name}: no case for validation")
        self._settings, self._dataset = config.validation, dataset
        self._batch = even_batch(self._settings.batch_size, jax.device_count())
        self._mesh = sampling_mesh(self._batch, jax.devices())
        self._seed = np.uint32(config.seed)
        self._replicate = jax.jit(lambda tree: tree, out_shardings=replicated(self._mesh))
        fusion.check_method(self._settings.fusion, model.encode_segments)
        sampling = {name: self._settings[name] for name in ("steps", "sampler", "member_chunk")}
        ensemble = denoiser.make_members_fn(model, process, **sampling)
        self._segment = denoiser.compile_segment_fn(ensemble, self._mesh, self._settings.members)
        self._scores_condition = model.generative and model.encode_segments

    def run(
        self, params: Params, interrupted: Callable[[], bool]
    ) -> tuple[dict[str, float], dict[str, np.ndarray]] | None:
        """Samples and scores all validation cases.

        Args:
          params: the averaged parameters.
          interrupted: asked before each batch whether to leave off; every process must be told the
            same.

        Returns:
          (scalars, pictures), or None if interrupted. Scalars: "dice", "iou" and, with prefix
          "condition_", those of the condition model alone, if it segments; means over cases
          (pictures, or volumes as far as their slices are validated) and classes, empty masks by
          the strict policy. Pictures: {"validation": [H, W, 3] uint8}, a row per example: image,
          reference, probability, uncertainty.
        """
        task = self._dataset.task
        pairs: dict[str, dict[str, list[_Pair]]] = {}
        rows: list[np.ndarray] = []
        params = self._replicate(params)
        for batch in self._batches():
            if interrupted():
                return None
            arrays = {name: batch[name] for name in ("image", "case")}
            arrays["first"] = np.zeros(len(batch["case"]), np.int32)
            inputs = shard_shared(on_data(self._mesh), arrays)
            with jax.set_mesh(self._mesh):
                drawn = self._segment(
                    params, inputs["image"], inputs["case"], self._seed, inputs["first"]
                )
            drawn = jax.device_get(drawn)  # all fusion and scoring below is numpy
            condition = drawn.condition_probability
            fused = fusion.fuse(drawn.members, task, self._settings.fusion, condition)
            answers = {"": fused}
            if self._scores_condition:
                answers["condition_"] = condition
            for prefix, probability in answers.items():
                decided = fusion.decide(probability, task).astype(bool)
                for index in np.flatnonzero(batch["valid"]):
                    pair = decided[index], batch["mask"][index].astype(bool)
                    cases = pairs.setdefault(prefix, {})
                    cases.setdefault(volume_of(batch["id"][index]), []).append(pair)
            if len(rows) < PICTURES:
                doubt = fusion.uncertainty(drawn.members, task)
                rows += _picture_rows(batch, fused, doubt, task)[: PICTURES - len(rows)]
        scalars = {
            prefix + name: value
            for prefix, cases in pairs.items()
            for name, value in score(cases.values(), task).items()
        }
        return scalars, {"validation": np.concatenate(rows, axis=0)}

    def _batches(self) -> Iterator[dict[str, Any]]:
        return input_pipeline.eval_batches(
            self._dataset,
            "validation",
            batch_size=self._batch,
            max_cases=self._settings.max_cases,
        )


def score(cases: Collection[list[_Pair]], task: Task) -> dict[str, float]:
    """Dice and IoU: mean over cases and classes, empty masks by the strict policy.

    Args:
      cases: the (prediction, reference) pairs [H, W, K] bool of each case, one or, of a volume, one
        per slice; their overlap is counted together.
      task: says which channels are classes.
    """
    scores: dict[str, list[float]] = {"dice": [], "iou": []}
    for pairs in cases:
        predicted, reference = (
            np.stack(masks)[..., task.foreground] for masks in zip(*pairs, strict=True)
        )
        for name, metric in (("dice", metrics.dice), ("iou", metrics.iou)):
            per_class = metric(predicted, reference, axis=(0, 1, 2))
            # Undefined means both empty, which the strict policy counts as right.
            scores[name].append(np.mean(np.nan_to_num(per_class, nan=1.0)))
    return {name: float(np.mean(values)) for name, values in scores.items()}


def _picture_rows(
    batch: dict[str, Any], probability: np.ndarray, doubt: np.ndarray, task: Task
) -> list[np.ndarray]:
    """One [H, 4 W, 3] uint8 row per real case."""
    rows = []
    for case in np.flatnonzero(batch["valid"]):
        reference, found = batch["mask"][case], probability[case]
        image = batch["image"][case]
        own = len(task.modalities) or image.shape[-1]  # channels of the slice itself
        middle = image.shape[-1] // own // 2 * own
        panels = [display.to_rgb(image[..., middle : middle + own])]
        panels += [display.grey(display.foreground(mask, task)) for mask in (reference, found)]
        panels.append(display.grey(doubt[case]))
        rows.append(np.concatenate(panels, axis=1))
    return rows
