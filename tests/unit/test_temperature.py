"""What a temperature is fitted on."""

import types

import numpy as np

from configs import base
from medsegdiff_jax import temperature
from medsegdiff_jax.checkpoint import LoadedModel
from medsegdiff_jax.types import Modality, Task, slice_id

SIDE = 16
TASK = Task(("organ",), (1,), True, 1, (Modality("MR"),))


class Sampled:
    """A segmenter that is sure of the upper half of each slice."""

    task = TASK
    settings = types.SimpleNamespace(fusion="mean")

    def __init__(self, loaded):
        del loaded

    def choose(self, **settings):
        return types.SimpleNamespace(**settings)

    def stream(self, cases, settings):
        del settings
        for _ in cases:
            probability = np.full((SIDE, SIDE, 1), 0.1, np.float32)
            probability[: SIDE // 2] = 0.9
            yield types.SimpleNamespace(probability=probability)


def test_volumes_are_counted_and_not_their_slices(tmp_path, monkeypatch):
    marked, empty = np.zeros((2, 1, SIDE, SIDE), np.uint8)
    marked[:, 4 : SIDE - 4, 4 : SIDE - 4] = 1
    source = [
        {"id": slice_id(volume, i).encode(), "image": None, "labels": labels}
        for volume, labels in (("a", marked), ("b", marked), ("c", empty))
        for i in range(20)
    ]
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
    assert temperature.calibrate("x")["cases"] == 2  # the third has no border
