"""What Segmenter and the written pictures make of several classes, against closed forms."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, logit, softmax

from medsegdiff_jax import picture_output
from medsegdiff_jax.partitioning import sampling_mesh
from medsegdiff_jax.segmenter import Segmenter
from medsegdiff_jax.types import Drawn, Task

SIDE = 16
CLASSES = Task(("disc", "cup"), (7, 9), True, 3)
REGIONS = Task(("disc", "cup"), (1, 2), False, 3)
TASKS = pytest.mark.parametrize("task", [CLASSES, REGIONS], ids=["exclusive", "regions"])


def chances(task, count, seed):
    """[count, S, S, K] random probabilities of a task, most of them undecided."""
    drawn = np.random.default_rng(seed).normal(0, 1.5, (count, SIDE, SIDE, task.mask_channels))
    return (softmax(drawn, axis=-1) if task.one_hot else expit(drawn)).astype(np.float32)


@pytest.fixture
def answering(tiny_model, monkeypatch):
    """A segmenter of a task whose network gives these members and condition, at temperature 2."""

    def build(task):
        loaded = dataclasses.replace(tiny_model, params={}, task=task, temperature=2.0)
        segmenter = Segmenter(loaded)
        members, (condition,) = chances(task, 4, 0), chances(task, 1, 1)

        def drawn(params, image, case, seed, first):
            batch = (len(image),)
            of_cases = np.broadcast_to(members[:, None], (4, *batch, *members.shape[1:]))
            return Drawn(of_cases, np.broadcast_to(condition, batch + condition.shape))

        mesh = sampling_mesh(1, jax.devices())
        monkeypatch.setattr(segmenter, "_segment_fn", lambda settings: (mesh, drawn))
        return segmenter, members, condition

    return build


def decided(probability, task):
    """Label ids, pixel by pixel."""
    if task.one_hot:
        return np.array([0, *task.label_values])[probability.argmax(-1)]
    return ((probability >= 0.5) * np.array(task.label_values)).sum(-1)


IMAGE = np.random.default_rng(2).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@TASKS
def test_a_call_returns_what_its_documentation_says(answering, task):
    segmenter, members, condition = answering(task)
    result = segmenter(IMAGE[None], members=4, decision="probable")
    fused = (members.mean(axis=0, dtype=np.float64) + condition) / 2
    np.testing.assert_array_equal(result.mask[0], decided(fused, task))
    np.testing.assert_array_equal(result.members[0], decided(members, task))
    scaled = softmax(np.log(fused) / 2, axis=-1) if task.one_hot else expit(logit(fused) / 2)
    np.testing.assert_allclose(result.probability[0], scaled, atol=1e-5)
    mean = members.mean(axis=0, dtype=np.float64)  # without the condition model
    if task.one_hot:
        entropy = -(mean * np.log(mean)).sum(-1) / np.log(3)
    else:
        entropy = (-mean * np.log2(mean) - (1 - mean) * np.log2(1 - mean)).max(-1)
    np.testing.assert_allclose(result.uncertainty[0], entropy, atol=1e-5)


@TASKS
def test_a_probability_is_written_for_each_class(answering, task, tmp_path):
    segmenter, *_ = answering(task)
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    settings = segmenter.choose(members=4, decision="probable")
    cases = picture_output.find(tmp_path / "a.png", None, task)
    saved = ("mask", "probability", "uncertainty", "members")
    (files,) = picture_output.segment(segmenter, cases, settings, saved, pytest.fail)
    files.write(tmp_path)
    expected = segmenter(IMAGE[None], case_ids=["a"], members=4, decision="probable")

    def written(name):
        return np.asarray(Image.open(tmp_path / f"{name}.png"))

    for index, name in enumerate(task.classes):
        channel = expected.probability[0, ..., index + task.one_hot]
        np.testing.assert_array_equal(written(f"a_probability_{name}"), np.rint(channel * 255))
    np.testing.assert_array_equal(written("a"), expected.mask[0])
    np.testing.assert_array_equal(written("a_uncertainty"), np.rint(expected.uncertainty[0] * 255))
    for index in range(4):
        np.testing.assert_array_equal(written(f"a_member_{index:02d}"), expected.members[0, index])
