"""Batches from sources in memory: positions, shares, epochs, padding, raters."""

import dataclasses
import itertools
import zlib

import numpy as np
import pytest

from configs import base
from medsegdiff_jax import input_pipeline, metrics
from medsegdiff_jax.input_pipeline import Dataset
from medsegdiff_jax.types import InputError, Modality, Task, case_key, slice_id

SIDE = 8
SCAN = (Modality("MRI"),)  # slices keep their intensities, unlike pictures
BINARY = Task(("lesion",), (1,), True, 1, SCAN)
CLASSES = Task(("a", "b"), (1, 2), True, 1, SCAN)


def case(number, labels):
    """A case whose image is constant and says its number: number / 100."""
    image = np.full((SIDE, SIDE, 1), number / 100, np.float32)
    return {"image": image, "labels": np.asarray(labels, np.uint8), "id": f"case_{number}".encode()}


def dataset(counts, labels=None, task=BINARY):
    """A dataset in memory with so many cases per split, without labels by default."""
    labels = np.zeros((1, SIDE, SIDE)) if labels is None else labels
    splits = zip(("train", "validation", "test"), counts, strict=True)
    sources = {split: [case(i, labels) for i in range(count)] for split, count in splits}
    return Dataset("memory", task, "0" * 16, (SIDE, SIDE, 1), "", sources)


def config(**fields):
    """The data config with these fields, of `augment` too; without them nothing is augmented."""
    data = base.get_config().data
    data.augment.update({"flip": False, "probability": 0.0})
    for name, value in fields.items():
        (data.augment if name in data.augment else data)[name] = value
    return data


def take(count, data, settings, **kwargs):
    """The first batches of the training stream."""
    return list(itertools.islice(input_pipeline.train_batches(data, settings, **kwargs), count))


def numbers(batches):
    """Case numbers, batch by batch, from the constant images."""
    return [np.rint(batch["image"][:, 0, 0, 0] * 50 + 50).astype(int).tolist() for batch in batches]


def assert_equal(one, two):
    """The batches agree in every array and bit."""
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_a_resumed_stream_continues_where_the_other_stopped():
    labels = np.random.default_rng(0).integers(0, 2, (3, SIDE, SIDE))
    data, settings = dataset((10, 0, 0), labels), config(flip=True, probability=1.0)
    whole = take(9, data, settings, batch_size=4, seed=3)
    assert_equal(take(4, data, settings, batch_size=4, seed=3, start_step=5), whole[5:])
    assert not np.array_equal(whole[0]["image"], whole[5]["image"])


def test_the_seed_decides_order_and_augmentation():
    data = dataset((10, 0, 0))
    settings = config(intensity=0.2, probability=1.0)
    first = take(3, data, settings, batch_size=4, seed=1)
    assert_equal(take(3, data, settings, batch_size=4, seed=1), first)
    assert numbers(take(3, data, config(), batch_size=4, seed=1)) != numbers(
        take(3, data, config(), batch_size=4, seed=2)
    )


def test_every_epoch_visits_every_case_once_in_a_new_order():
    batches = take(6, dataset((12, 0, 0)), config(), batch_size=4, seed=0)
    stream = sum(numbers(batches), [])
    epochs = stream[:12], stream[12:]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1] and epochs[0] != sorted(epochs[0])


def test_processes_share_the_stream_of_one():
    data, settings = dataset((10, 0, 0)), config(intensity=0.2, probability=1.0)
    whole = take(6, data, settings, batch_size=6, seed=7)
    shares = [
        take(6, data, settings, batch_size=2, seed=7, process_index=i, process_count=3)
        for i in range(3)
    ]
    for step, batch in enumerate(whole):
        for index, share in enumerate(shares):
            rows = slice(2 * index, 2 * index + 2)
            np.testing.assert_array_equal(share[step]["image"], batch["image"][rows])


def test_an_epoch_draws_fresh_changes():
    data, settings = dataset((1, 0, 0)), config(intensity=0.2, probability=1.0)
    one, two = take(2, data, settings, batch_size=1, seed=0)
    assert not np.array_equal(one["image"], two["image"])


def test_training_shows_one_rater_at_a_time_and_all_in_turn():
    labels = np.zeros((3, SIDE, SIDE))
    for rater in range(3):
        labels[rater, rater] = 1  # each rater marks a row of its own
    batches = take(10, dataset((4, 0, 0), labels), config(), batch_size=4, seed=0)
    masks = np.concatenate([batch["mask"] for batch in batches])
    rows = masks[..., 0].any(axis=2)
    np.testing.assert_array_equal(rows.sum(axis=1), 1)
    assert set(rows.argmax(axis=1).tolist()) == {0, 1, 2}


def test_training_may_show_the_mean_of_the_raters():
    labels = np.zeros((4, SIDE, SIDE))
    labels[0, 0], labels[:3, 1] = 1, 1
    data = dataset((1, 0, 0), labels)
    (batch,) = take(1, data, config(raters="mean"), batch_size=1, seed=0)
    np.testing.assert_array_equal(batch["mask"][0, :3, 0, 0], [0.25, 0.75, 0])


def test_one_change_moves_the_image_and_every_rater():
    side = 48
    rows, columns = np.mgrid[:side, :side]
    disc = ((rows - 20) ** 2 / 9 + (columns - 28) ** 2 / 4 < 16).astype(np.uint8)
    example = {"image": disc[..., None] / np.float32(1), "labels": np.stack([disc] * 2), "id": b"a"}
    data = dataclasses.replace(dataset((1, 0, 0)), sources={"train": [example]})
    settings = config(raters="mean", flip=True, probability=1.0, gamma=0.0, intensity=0.0)
    for batch in take(12, data, settings, batch_size=1, seed=5):
        mask, image = batch["mask"][0, ..., 0], batch["image"][0, ..., 0] > 0
        assert set(np.unique(mask)) <= {0.0, 1.0}  # the raters agree before and after
        assert metrics.dice(image, mask) > 0.97
        centres = [np.argwhere(one).mean(axis=0) for one in (image, mask)]
        np.testing.assert_allclose(*centres, atol=0.1)


def test_empty_examples_are_held_to_their_share():
    data = dataclasses.replace(dataset((20, 0, 0)), empty=range(4, 20))
    stream = sum(numbers(take(100, data, config(max_empty=0.25), batch_size=8, seed=0)), [])
    assert np.mean(np.array(stream) >= 4) == pytest.approx(0.25, abs=0.01)
    assert set(stream) == set(range(20))
    stream = sum(numbers(take(5, data, config(max_empty=0.0), batch_size=8, seed=0)), [])
    assert set(stream) == {0, 1, 2, 3}
    # Few empty ones are no reason to change anything.
    few = dataclasses.replace(data, empty=[0])
    assert_equal(
        take(5, few, config(max_empty=0.25), batch_size=8, seed=0),
        take(5, dataset((20, 0, 0)), config(), batch_size=8, seed=0),
    )


def test_a_balanced_stream_resumes_and_is_shared_too():
    data = dataclasses.replace(dataset((20, 0, 0)), empty=range(4, 20))
    settings = config(max_empty=0.25, intensity=0.2, probability=1.0)
    whole = take(8, data, settings, batch_size=4, seed=3)
    assert_equal(take(3, data, settings, batch_size=4, seed=3, start_step=5), whole[5:])
    halves = [
        take(8, data, settings, batch_size=2, seed=3, process_index=i, process_count=2)
        for i in range(2)
    ]
    for step, batch in enumerate(whole):
        for index, half in enumerate(halves):
            rows = slice(2 * index, 2 * index + 2)
            np.testing.assert_array_equal(half[step]["image"], batch["image"][rows])


def test_training_batches_have_the_promised_form():
    data = dataset((4, 0, 0), np.full((1, SIDE, SIDE), 2), CLASSES)
    (batch,) = take(1, data, config(), batch_size=3, seed=0)
    assert set(batch) == {"image", "mask"}
    assert batch["image"].shape == (3, SIDE, SIDE, 1) and batch["image"].dtype == np.float32
    assert batch["mask"].shape == (3, SIDE, SIDE, 3) and batch["mask"].dtype == np.float32
    np.testing.assert_array_equal(batch["mask"][0, 0, 0], [0, 0, 1])


def test_training_without_cases_or_with_a_wrong_field_is_refused():
    with pytest.raises(InputError, match="no case for training"):
        take(1, dataset((0, 1, 1)), config(), batch_size=1, seed=0)
    settings = config()
    settings.augment.blur = 1.0
    with pytest.raises(InputError, match="data.augment.blur"):
        take(1, dataset((1, 0, 0)), settings, batch_size=1, seed=0)


@pytest.mark.parametrize(("count", "batch_size"), [(7, 3), (6, 3), (2, 5)])
def test_evaluation_counts_every_case_once(count, batch_size):
    data = dataset((1, 0, count))
    batches = list(input_pipeline.eval_batches(data, "test", batch_size=batch_size))
    assert len(batches) == -(-count // batch_size)
    seen = []
    for batch in batches:
        assert batch["image"].shape == (batch_size, SIDE, SIDE, 1)
        assert batch["mask"].shape == (batch_size, SIDE, SIDE, 1)
        assert batch["valid"].dtype == np.float32 and len(batch["id"]) == batch_size
        real = batch["valid"] == 1
        assert real[0] and set(batch["valid"]) <= {0.0, 1.0}
        seen += np.array(batch["id"])[real].tolist()
        (shown,) = numbers([batch])
        assert [f"case_{number}" for number in shown] == batch["id"]
    assert seen == [f"case_{i}" for i in range(count)]
    padded = batches[-1]["valid"] == 0
    assert padded.sum() == len(batches) * batch_size - count


def test_the_case_key_is_the_crc32_of_the_id():
    assert case_key("123456789") == 0xCBF43926  # the check value of CRC-32
    assert case_key(slice_id("123456789", 7)) == 0xCBF43926
    (batch,) = input_pipeline.eval_batches(dataset((1, 0, 3)), "test", batch_size=4)
    assert batch["case"].dtype == np.uint32
    assert batch["case"].tolist() == [zlib.crc32(name.encode()) for name in batch["id"]]


def test_max_cases_are_evenly_spread():
    data = dataset((1, 10, 0), task=Task(("lesion",), (1,), True, 1))

    def shown(max_cases):
        batches = input_pipeline.eval_batches(data, "validation", batch_size=2, max_cases=max_cases)
        return [
            name
            for batch in batches
            for name, valid in zip(batch["id"], batch["valid"], strict=True)
            if valid
        ]

    assert shown(5) == [f"case_{i}" for i in (0, 2, 4, 6, 8)]
    assert shown(3) == [f"case_{i}" for i in (0, 3, 6)]
    assert shown(99) == shown(None) == [f"case_{i}" for i in range(10)]


def test_max_cases_are_spread_over_the_places_in_a_volume():
    for volumes in (50, 100, 200):  # of 155 slices, as in BraTS
        chosen = input_pipeline.spread(155 * volumes, 100, BINARY)
        assert chosen == sorted(set(chosen)) and len({i % 155 for i in chosen}) > 50
    assert input_pipeline.spread(7, 7, BINARY) == list(range(7))
    assert input_pipeline.spread(0, 0, BINARY) == []


def test_evaluation_takes_the_majority():
    votes = np.zeros((4, SIDE, SIDE), np.uint8)
    votes[:1, 0], votes[:2, 1], votes[:3, 2] = 1, 1, 1
    (batch,) = input_pipeline.eval_batches(dataset((1, 0, 1), votes), "test", batch_size=1)
    np.testing.assert_array_equal(batch["mask"][0, :4, 0, 0], [0, 1, 1, 0])  # half is enough
    classes = np.zeros((3, SIDE, SIDE), np.uint8)
    classes[0, 0], classes[1, 0], classes[2, 0] = 1, 2, 2
    classes[0, 1] = 1
    data = dataset((1, 0, 1), classes, CLASSES)
    (batch,) = input_pipeline.eval_batches(data, "test", batch_size=1)
    np.testing.assert_array_equal(batch["mask"][0, :3, 0], [[0, 0, 1], [1, 0, 0], [1, 0, 0]])


def test_an_unknown_split_and_an_empty_one():
    with pytest.raises(InputError, match="'val'"):
        list(input_pipeline.eval_batches(dataset((1, 1, 1)), "val", batch_size=1))
    assert list(input_pipeline.eval_batches(dataset((1, 0, 0)), "test", batch_size=2)) == []


@pytest.mark.parametrize(("field", "value"), [("name", "mnist"), ("neighbours", 1)])
def test_load_names_the_wrong_field(field, value, tmp_path):
    settings = base.get_config().data
    settings.update(name="phantom", cache_dir=str(tmp_path), image_size=8)
    settings[field] = value
    with pytest.raises(InputError, match=f"data.{field}.*{value}"):
        input_pipeline.load(settings)
