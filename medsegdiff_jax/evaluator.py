"""Validation during training: real sampling with the averaged weights, scored per case."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from medsegdiff_jax import denoiser, fusion, input_pipeline, metrics, report
from medsegdiff_jax.input_pipeline import Dataset
from medsegdiff_jax.partitioning import shard_batch
from medsegdiff_jax.process import Process
from medsegdiff_jax.types import InputError, Params, Task

PICTURES = 4  # cases shown in TensorBoard


class Validation:
    """Scores parameters on a split of the dataset, at training resolution."""

    def __init__(
        self, config: Any, dataset: Dataset, model: nn.Module, process: Process, mesh: Mesh
    ):
        """Jits the ensemble and the condition model's own segmentation.

        Args:
          config: the whole config; its `validation` node holds members, steps, sampler, fusion,
            member_chunk, batch_size and max_cases.
          dataset: its "validation" split is scored; with max_cases, evenly spread cases of it.
          model, process: what is trained.
          mesh: the devices.

        Raises:
          InputError: an impossible sampling setting, or no validation case.
        """
        if not len(dataset.sources["validation"]):
            raise InputError(f"{dataset.name}: no case for validation")
        self._settings, self._dataset, self._mesh = config.validation, dataset, mesh
        self._seed = np.uint32(config.seed)
        sampling = {
            name: self._settings[name] for name in ("members", "steps", "sampler", "member_chunk")
        }
        segment = denoiser.make_segment_fn(model, process, **sampling)
        self._segment_fns = {"": denoiser.compile_segment_fn(segment, mesh)}
        if model.generative:
            alone = denoiser.make_segment_fn(model, process, **(sampling | {"steps": 0}))
            self._segment_fns["condition_"] = denoiser.compile_segment_fn(alone, mesh)

    def run(self, params: Params) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Samples and scores all validation cases.

        Returns:
          Scalars {"dice", "iou", and with prefix "condition_" those of the condition model alone}:
          mean over cases and classes, empty masks by the strict policy; and pictures
          {"validation": [H, W, 3] uint8}, a row per case: image, reference, probability,
          uncertainty.
        """
        scores: dict[str, list[float]] = {}
        rows: list[np.ndarray] = []
        for batch in self._batches():
            inputs = shard_batch(self._mesh, {name: batch[name] for name in ("image", "case")})
            for prefix, segment in self._segment_fns.items():
                # A copy on the host: all fusion and scoring below is numpy.
                members = jax.device_get(
                    segment(params, inputs["image"], inputs["case"], self._seed)
                )
                task = self._dataset.task
                probability = fusion.fuse(members, task, self._settings.fusion)
                for name, values in score_batch(probability, batch, task).items():
                    scores.setdefault(prefix + name, []).extend(values)
                if not prefix and len(rows) < PICTURES:
                    doubt = fusion.uncertainty(members, task)
                    rows += _picture_rows(batch, probability, doubt, task)[: PICTURES - len(rows)]
        scalars = {name: float(np.mean(values)) for name, values in scores.items()}
        return scalars, {"validation": np.concatenate(rows, axis=0)}

    def _batches(self) -> Iterator[dict[str, Any]]:
        return input_pipeline.eval_batches(
            self._dataset,
            "validation",
            batch_size=self._settings.batch_size,
            max_cases=self._settings.max_cases,
        )


def score_batch(
    probability: np.ndarray, batch: dict[str, Any], task: Task
) -> dict[str, list[float]]:
    """Dice and IoU of each real case of a batch: mean over classes, strict empty-mask policy.

    Args:
      probability: [B, H, W, K] fused.
      batch: has mask [B, H, W, K] and valid [B].
      task: says which channels are classes.
    """
    foreground = slice(1, None) if task.one_hot else slice(None)
    predicted = fusion.decide(probability, task)[..., foreground]
    reference = batch["mask"].astype(np.uint8)[..., foreground]
    scores: dict[str, list[float]] = {"dice": [], "iou": []}
    for case in np.flatnonzero(batch["valid"]):
        for name, metric in (("dice", metrics.dice), ("iou", metrics.iou)):
            per_class = [
                metric(predicted[case, ..., k], reference[case, ..., k])
                for k in range(reference.shape[-1])
            ]
            # Undefined means both empty, which the strict policy counts as right.
            scores[name].append(float(np.mean(np.nan_to_num(per_class, nan=1.0))))
    return scores


def _picture_rows(
    batch: dict[str, Any], probability: np.ndarray, doubt: np.ndarray, task: Task
) -> list[np.ndarray]:
    """One [H, 4 W, 3] uint8 row per real case."""
    rows = []
    for case in np.flatnonzero(batch["valid"]):
        grey = [
            report.foreground(batch["mask"][case], task),
            report.foreground(probability[case], task),
            doubt[case],
        ]
        panels = [report.to_display(batch["image"][case])]
        panels += [report.to_display(report.to_byte(panel)[..., None]) for panel in grey]
        rows.append(np.concatenate(panels, axis=1))
    return rows
