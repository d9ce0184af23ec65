"""Validation scores: whole volumes, not slices; empty masks count."""

from types import SimpleNamespace

import numpy as np
import pytest

from medsegdiff_jax import display, evaluator, metrics, trainer
from medsegdiff_jax.types import Modality, Task
from medsegdiff_jax.writer import NoWriter

ONE_HOT = Task(("a", "b"), (1, 2), True, 1)
BINARY = Task(("lesion",), (1,), True, 1)


def random_pairs(count, channels, seed):
    """(prediction, reference) pairs [5, 6, channels] bool."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.random((2, 5, 6, channels)) < 0.4) for _ in range(count)]


def test_slices_of_a_volume_are_counted_together():
    volume, picture = random_pairs(4, 3, 0), random_pairs(1, 3, 1)
    found = evaluator.score([volume, picture], ONE_HOT)
    for name, metric in (("dice", metrics.dice), ("iou", metrics.iou)):
        per_case = [
            np.mean(
                [
                    metric(
                        np.stack([p[..., k] for p, _ in pairs]),
                        np.stack([r[..., k] for _, r in pairs]),
                    )
                    for k in (1, 2)  # the background is no class
                ]
            )
            for pairs in (volume, picture)
        ]
        assert found[name] == pytest.approx(np.mean(per_case))


def test_rightly_empty_counts_as_one_and_wrongly_empty_as_nothing():
    empty, full = np.zeros((2, 2, 1), bool), np.ones((2, 2, 1), bool)
    assert evaluator.score([[(empty, empty)]], BINARY) == {"dice": 1.0, "iou": 1.0}
    assert evaluator.score([[(empty, full)]], BINARY) == {"dice": 0.0, "iou": 0.0}
    # One empty slice of a volume does not decide about it.
    assert evaluator.score([[(empty, empty), (full, full), (empty, full)]], BINARY)[
        "dice"
    ] == pytest.approx(2 * 4 / (4 + 8))


def test_pictures_show_the_slice_in_the_middle_of_those_beside_it():
    """Two slices on each side, two modalities each: channel 4 is the first of the middle one."""
    task = Task(("lesion",), (1,), True, 10, (Modality("T1"), Modality("T2")))
    image = np.random.default_rng(0).random((1, 6, 6, 10), np.float32)
    blank = np.zeros((1, 6, 6, 1), np.float32)
    batch = {"valid": np.array([True]), "image": image, "mask": blank}
    (row,) = evaluator._picture_rows(batch, blank, blank[..., 0], task)
    np.testing.assert_array_equal(row[:, :6], display.to_rgb(image[0, ..., 4:5]))


def test_it_is_the_averaged_weights_that_are_validated():
    given = []

    def run(params, interrupted):
        given.append(params)
        return {"dice": 0.5}, {}

    state = SimpleNamespace(params="newest", ema_params="averaged")
    dice = trainer.validate(7, state, SimpleNamespace(run=run), NoWriter(), lambda: False)
    assert (given, dice) == (["averaged"], 0.5)
