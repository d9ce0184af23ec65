"""Phantoms: the same for everyone, raters as stated, prepared and written as promised."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from configs import base
from data import preparation
from data.phantom import appearance, model
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.imaging import read_image, read_labels
from medsegdiff_jax.types import InputError

ROOT = Path(__file__).resolve().parents[2]
CASES = ("binary_test_007", "multiclass_train_003")


@pytest.fixture
def few_cases(monkeypatch):
    """Fewer cases per split, to prepare in moments."""
    monkeypatch.setattr(model, "SPLIT_SIZES", {"train": 3, "validation": 2, "test": 2})


def config(tmp_path, variant="binary", image_size=32):
    """The data config of the phantoms."""
    data = base.get_config().data
    data.update(name="phantom", variant=variant, image_size=image_size)
    data.cache_dir = str(tmp_path / "cache")
    return data


@pytest.mark.parametrize("case", CASES)
def test_a_case_is_a_function_of_its_id(case):
    assert appearance.render(case).tobytes() == appearance.render(case).tobytes()
    assert model.stored_raters(case).tobytes() == model.stored_raters(case).tobytes()
    first, again, other = (model.fresh_raters(case, 3, seed) for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    neighbour = case[:-1] + "9"
    assert not np.array_equal(appearance.render(case), appearance.render(neighbour))
    assert not np.array_equal(model.stored_raters(case), model.stored_raters(neighbour))


@pytest.mark.parametrize(("case", "channels"), [(CASES[0], 3), (CASES[1], 1)])
def test_images_and_labels_have_the_promised_form(case, channels):
    image, labels = appearance.render(case), model.stored_raters(case)
    assert image.shape == (128, 128, channels) and image.dtype == np.uint8
    assert labels.shape == (5, 128, 128) and labels.dtype == np.uint8
    classes = len(model.TASKS[case.split("_")[0]].classes)
    for rater in labels:
        assert np.unique(rater).tolist() == list(range(classes + 1))
    assert (labels[:, [0, -1]] == 0).all() and (labels[:, :, [0, -1]] == 0).all()


def test_ids_are_unique_and_others_are_refused():
    ids = [
        model.case_id(variant, split, number)
        for variant in model.TASKS
        for split, count in model.SPLIT_SIZES.items()
        for number in range(count)
    ]
    assert len(set(ids)) == len(ids) == 2 * (400 + 40 + 60)
    assert len({model._address(case) for case in ids}) == len(ids)
    for case in ("binary_test_060", "binary_test_7", "binary_val_001", "polyp_test_001", "007"):
        with pytest.raises(InputError, match=case):
            model.anatomy(case)


def test_stored_raters_are_none_of_the_fresh_ones():
    stored = {rater.tobytes() for rater in model.stored_raters(CASES[0])}
    for count in (5, 40):  # as many as are stored: the same draws but for the generator
        fresh = {rater.tobytes() for rater in model.fresh_raters(CASES[0], count, 0)}
        assert len(stored) == 5 and len(fresh) == count and not stored & fresh


@pytest.mark.parametrize(("case", "count"), [(CASES[0], 2000), (CASES[1], 600)])
def test_fresh_raters_follow_the_stated_distribution(case, count):
    labels = np.concatenate([model.fresh_raters(case, 200, seed) for seed in range(count // 200)])
    for value, probability in enumerate(model.rater_probability(case), 1):
        frequency = (labels >= value).mean(axis=0)
        for wanted in (0.1, 0.3, 0.5, 0.7, 0.9):
            pixel = np.unravel_index(np.abs(probability - wanted).argmin(), probability.shape)
            p = probability[pixel]
            assert 0.02 < p < 0.98
            assert abs(frequency[pixel] - p) < 5 * np.sqrt(p * (1 - p) / count)


def test_the_distribution_is_that_of_the_formula():
    shape = model.anatomy(CASES[0])
    probability = model.rater_probability(CASES[0])[0]
    # Phi(1) = 0.8413 one standard deviation, a_case sqrt(1 + 0.5^2), inside the boundary.
    deviations = shape.distances[0] / (shape.ambiguity * np.sqrt(1.25))
    near = np.abs(deviations - 1) < 0.05
    assert near.any()
    np.testing.assert_allclose(probability[near], 0.8413, atol=0.0125)
    core = model.rater_probability(CASES[1])
    assert (core[1] <= core[0]).all()


def test_the_distance_is_zero_on_the_outline_and_rises_by_one_per_pixel():
    distance = model.anatomy(CASES[0]).distances[0]
    slope = np.hypot(*np.gradient(distance))
    np.testing.assert_allclose(slope[np.abs(distance) < 1.5], 1, atol=0.15)
    area = np.pi * 17**2, np.pi * 31**2
    assert area[0] * 0.8 < (distance > 0).sum() < area[1] * 1.3


def test_the_smooth_field_has_unit_variance_and_the_stated_correlation():
    fields = model.smooth_field(np.random.default_rng(0), model.FIELD_LENGTH, 60)
    np.testing.assert_allclose(fields.mean(), 0, atol=0.03)
    np.testing.assert_allclose(fields.var(), 1, atol=0.06)
    shifted = np.roll(fields, 8, axis=-1)  # white noise twice through the Gaussian
    np.testing.assert_allclose((fields * shifted).mean(), np.exp(-1 / 4), atol=0.06)


@pytest.mark.parametrize(
    ("variant", "channels", "planes"), [("binary", 3, 1), ("multiclass", 1, 3)]
)
def test_prepare_and_load(tmp_path, few_cases, variant, channels, planes):
    data = config(tmp_path, variant)
    dataset = input_pipeline.load(data)
    assert dataset.task == model.TASKS[variant]
    assert dataset.image_shape == (32, 32, channels)
    assert {split: len(source) for split, source in dataset.sources.items()} == model.SPLIT_SIZES
    example = dataset.sources["validation"][1]
    assert example["id"].decode() == f"{variant}_validation_001"
    assert example["labels"].shape == (5, 32, 32)
    native = model.stored_raters(f"{variant}_validation_001")
    shares = [(labels > 0).mean() for labels in (example["labels"], native)]
    np.testing.assert_allclose(*shares, rtol=0.02)
    (batch,) = input_pipeline.eval_batches(dataset, "test", batch_size=2)
    assert batch["mask"].shape == (2, 32, 32, planes)
    batch = next(input_pipeline.train_batches(dataset, data, batch_size=2, seed=0))
    assert batch["image"].shape == (2, 32, 32, channels)
    assert dataset.report.splitlines()[:2] == [
        f"data phantom {variant}",
        "  cases   train 3, validation 2, test 2",
    ]


def test_drawn_phantoms_are_found_again(tmp_path, few_cases, monkeypatch):
    data = config(tmp_path, image_size=16)
    first = input_pipeline.load(data)
    pixels = [example["image"].tobytes() for example in first.sources["train"]]

    def unexpected(case):
        raise AssertionError("drawn again")

    with monkeypatch.context() as patch:
        patch.setattr(appearance, "render", unexpected)
        again = input_pipeline.load(data)
    assert again.fingerprint == first.fingerprint
    elsewhere = input_pipeline.load(config(tmp_path / "elsewhere", image_size=16))
    assert [example["image"].tobytes() for example in elsewhere.sources["train"]] == pixels
    data.image_size = 8
    assert input_pipeline.load(data).fingerprint != first.fingerprint


def test_one_program_at_a_time_draws_them(tmp_path, few_cases, monkeypatch):
    data, waiting = config(tmp_path, image_size=8), threading.Event()
    monkeypatch.setattr(preparation._log, "info", lambda *_: waiting.set())
    with ThreadPoolExecutor(1) as pool:
        with preparation.locked(tmp_path / "cache", "phantom"):
            other = pool.submit(input_pipeline.load, data)
            assert waiting.wait(timeout=60) and not other.done()
            assert not (tmp_path / "cache" / "phantom").exists()
        assert len(other.result().sources["train"]) == 3


@pytest.mark.parametrize(
    ("field", "value"), [("variant", "polyp"), ("image_size", 0), ("folds", 5)]
)
def test_wrong_fields_are_named(tmp_path, field, value):
    data = config(tmp_path)
    data[field] = value
    with pytest.raises(InputError, match=f"data.{field}"):
        input_pipeline.load(data)


def run_python(*arguments):
    """The interpreter with the arguments, in the root of the repository."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def run(*arguments):
    """`python -m data` for the demo's phantoms with the arguments."""
    return run_python("-m", "data", "--config=configs/demo.py", *arguments)


def test_the_command_writes_a_folder(tmp_path):
    done = run(f"--output={tmp_path / 'out'}", "--split=validation", "--count=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"wrote {tmp_path / 'out'}"
    cases = ["binary_validation_000", "binary_validation_001"]
    folders = ["images", *(f"masks_{rater}" for rater in range(1, 6))]
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in tmp_path.rglob("*.png"))
    assert written == sorted(f"{folder}/{case}.png" for folder in folders for case in cases)
    for case in cases:
        image = read_image(tmp_path / "out" / "images" / f"{case}.png")
        np.testing.assert_array_equal(image, appearance.render(case))
        for rater, labels in enumerate(model.stored_raters(case), 1):
            path = tmp_path / "out" / f"masks_{rater}" / f"{case}.png"
            np.testing.assert_array_equal(read_labels(path), labels)
    mixed = run(f"--output={tmp_path / 'out'}", "--split=test", "--count=1")
    assert mixed.returncode == 2 and "is of none of the cases to write" in mixed.stderr


def test_the_command_refuses_a_wrong_count(tmp_path):
    done = run(f"--output={tmp_path / 'out'}", "--count=61")
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --count=61: test has 60 cases"
    assert not (tmp_path / "out").exists()


def test_the_data_side_needs_no_tensorflow(tmp_path):
    program = f"""
import sys
from importlib.machinery import PathFinder

class WithoutTensorflow(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "tensorflow" else super().find_spec(name, path, target)

# Not sys.modules["tensorflow"] = None: TFDS takes an entry there for a loaded TensorFlow.
sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTensorflow
import data.folder
from configs import base
from data.phantom import model
from medsegdiff_jax import input_pipeline
model.SPLIT_SIZES.update(train=2, validation=1, test=1)
data = base.get_config().data
data.update(name="phantom", cache_dir={str(tmp_path)!r}, image_size=8)
dataset = input_pipeline.load(data)
batch = next(input_pipeline.train_batches(dataset, data, batch_size=2, seed=0))
assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
print(batch["image"].shape)
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "(2, 8, 8, 3)"
