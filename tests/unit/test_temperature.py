"""What a temperature is fitted on."""

import types
from typing import ClassVar

import numpy as np
import pytest

from configs import base
from medsegdiff_jax import temperature
from medsegdiff_jax.checkpoint import LoadedModel
from medsegdiff_jax.metrics.calibration import apply_temperature
from medsegdiff_jax.types import Modality, Task, slice_id

SIDE = 16
TASK = Task(("organ",), (1,), True, 1, (Modality("MR"),))
MARKED = np.zeros((1, SIDE, SIDE), np.uint8)
MARKED[:, 4 : SIDE - 4, 4 : SIDE - 4] = 1


class Sampled:
    """A segmenter that is sure of the upper half of each slice."""

    task = TASK
    settings = types.SimpleNamespace(fusion="mean")
    seen: ClassVar[list[str]] = []

    def __init__(self, loaded):
        del loaded

    def choose(self, **settings):
        return types.SimpleNamespace(**settings)

    def stream(self, cases, settings):
        del settings
        for name, _ in cases:
            self.seen.append(name)
            probability = np.full((SIDE, SIDE, 1), 0.1, np.float32)
            probability[: SIDE // 2] = 0.9
            yield types.SimpleNamespace(probability=probability)


def slices(volume, count, labels):
    """So many slices of a volume, all with these labels [1, S, S]."""
    return [
        {"id": slice_id(volume, i).encode(), "image": None, "labels": labels} for i in range(count)
    ]


@pytest.fixture
def calibrated(tmp_path, monkeypatch):
    """Calibrates on these validation slices; returns what is stored and the slices looked at."""

    def run(source):
        loaded = LoadedModel(
            params={},
            config=base.get_config("default,tiny"),
            task=TASK,
            description="",
            metadata={"fingerprint": "f"},
            folder=tmp_path,
        )
        dataset = types.SimpleNamespace(fingerprint="f", sources={"validation": source}, task=TASK)
        monkeypatch.setattr(temperature, "load_model", lambda checkpoint: loaded)
        monkeypatch.setattr(temperature, "Segmenter", Sampled)
        monkeypatch.setattr(temperature.input_pipeline, "load", lambda config: dataset)
        monkeypatch.setattr(Sampled, "seen", [])
        return temperature.calibrate("x"), Sampled.seen

    return run


def test_volumes_are_counted_and_not_their_slices(calibrated):
    volumes = (("a", MARKED), ("b", MARKED), ("c", np.zeros_like(MARKED)))
    stored, _ = calibrated([one for name, labels in volumes for one in slices(name, 20, labels)])
    assert stored["cases"] == 2  # the third has no border


def test_pixels_are_compared_with_the_fraction_of_raters_that_mark_them(calibrated, monkeypatch):
    given = []

    def fit(probability, reference, *, one_hot):
        given.append((probability, reference))
        return 1.0

    monkeypatch.setattr(temperature, "fit_temperature", fit)
    left, right = MARKED.copy(), MARKED.copy()
    left[:, :, SIDE // 2 :] = 0
    right[:, :, : SIDE // 2 - 2] = 0
    three = np.concatenate([left, right, MARKED])
    calibrated(slices("a", 1, three))
    ((_, reference),) = given
    # Of the square that is the majority's, 8 pixels wide, all but 2 columns are marked by two.
    assert np.unique(reference).tolist() == [0, pytest.approx(2 / 3), 1]
    assert ((reference == 1).sum(), (reference > 0).sum()) == (2 * 8, 8 * 8)


def test_what_it_does_to_whole_images_is_measured(calibrated):
    small = np.zeros((1, SIDE, SIDE), np.uint8)
    small[:, :3, :3] = 1  # most of the slice is far from its border
    stored, _ = calibrated(slices("a", 2, small))
    probability = np.full((SIDE, SIDE), 0.1)
    probability[: SIDE // 2] = 0.9
    assert stored["temperature"] > 1  # of 0.9 near the border there is less than half
    for when, temperature_then in (("before", 1.0), ("after", stored["temperature"])):
        scaled = apply_temperature(probability, temperature_then)
        expected = np.mean((scaled - small[0]) ** 2)
        assert stored["brier"][when] == pytest.approx(expected, abs=1e-6)


def test_slices_have_all_places_in_their_volumes(calibrated, monkeypatch):
    monkeypatch.setattr(temperature, "MAX_CASES", 20)
    _, seen = calibrated([one for n in range(20) for one in slices(f"v{n}", 30, MARKED)])
    assert len(seen) == 20 and len({name.rpartition("/")[2] for name in seen}) > 8
