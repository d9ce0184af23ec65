"""Raters who have not annotated every case: each case counts with those who have."""

import json

import numpy as np
import pytest

from configs import base
from data.folder import Builder
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError
from tests.layouts import save_image

SIDE = 12
RATED = {"a": "xyz", "b": "y", "c": "xz", "d": "xyz", "e": "xz"}  # case -> its raters


def mask_of(rater):
    """Each rater marks rows of their own, and one that all mark."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    first = 4 * "xyz".index(rater)
    labels[first : first + 2] = labels[11] = 255
    return labels


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "input"
    for number, (case, raters) in enumerate(RATED.items()):
        image = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        save_image(folder / "images" / f"{case}.png", image)
        for rater in raters:
            save_image(folder / f"masks_{rater}" / f"{case}.png", mask_of(rater))
    for split, names in (("train", "abc"), ("val", "d"), ("test", "e")):
        (folder / f"{split}.txt").write_text("\n".join(names))
    return folder


@pytest.fixture
def data(root, tmp_path):
    """The data config of the folder."""
    data = base.get_config().data
    data.path, data.image_size, data.cache_dir = str(root), SIDE, str(tmp_path / "cache")
    data.augment.flip, data.augment.probability = False, 0.0
    return data


def test_an_example_has_the_labels_of_its_raters(data):
    dataset = input_pipeline.load(data)
    for source in dataset.sources.values():
        for example in source:
            raters = RATED[example["id"].decode()]
            np.testing.assert_array_equal(example["labels"], [mask_of(one) for one in raters])
    lines = dataset.report.splitlines()
    assert "  masks   1..3 per case (x, y, z), 0 of 11 empty" in lines
    assert [line for line in lines if "note" in line] == [
        "  note    masks_x/ has no mask of 1 of 5 images: b",
        "  note    masks_y/ has no mask of 2 of 5 images: c, e",
        "  note    masks_z/ has no mask of 1 of 5 images: b",
    ]


@pytest.mark.parametrize("raters", ["draw", "mean"])
def test_training_shows_those_who_have_annotated_the_case(data, raters):
    data.raters = raters
    dataset = input_pipeline.load(data)
    seen = {}
    batches = input_pipeline.train_batches(dataset, data, batch_size=3, seed=0, start_step=0)
    images = {
        example["id"].decode(): example["image"][..., 0] for example in dataset.sources["train"]
    }
    for _, batch in zip(range(20), batches, strict=False):
        for image, mask in zip(batch["image"], batch["mask"], strict=True):
            case = max(images, key=lambda n: np.corrcoef(images[n].flat, image.flat)[0, 1])
            seen.setdefault(case, set()).add(tuple(mask[:, 0, 0].tolist()))
    for case, found in seen.items():
        masks = [mask_of(one)[:, 0] / 255 for one in RATED[case]]
        expected = [np.mean(masks, axis=0)] if raters == "mean" else masks
        assert found == {tuple(np.float32(one).tolist()) for one in expected}
    assert seen.keys() == set("abc")


def test_the_majority_is_that_of_the_case(data):
    dataset = input_pipeline.load(data)
    batches = [
        next(input_pipeline.eval_batches(dataset, split, batch_size=1))
        for split in ("validation", "test")
    ]
    three, two = (batch["mask"][0, :, 0, 0].nonzero()[0].tolist() for batch in batches)
    assert three == [11] and two == [0, 1, 8, 9, 11]  # of two raters, one is half


def test_a_case_without_any_rater_is_refused(data, root):
    (root / "masks_y" / "b.png").unlink()
    with pytest.raises(InputError, match=r"image without mask: .*b\.png"):
        input_pipeline.load(data)


def test_what_is_written_is_scored(data, root, command, tmp_path):
    """The masks of a rater as predictions: of all cases, whoever has annotated them."""
    Builder.write_split(data, "train", tmp_path / "plain", None)
    written = {
        str(path.relative_to(tmp_path / "plain")) for path in tmp_path.glob("plain/masks*/*")
    }
    assert written == {f"masks_{rater}/{case}.png" for case in "abc" for rater in RATED[case]}
    predictions = tmp_path / "predictions"
    for case in "abc":
        save_image(predictions / f"{case}.png", mask_of("x"))
    task = {"classes": ["foreground"], "label_values": [255], "exclusive": True}
    (predictions / "run.json").write_text(
        json.dumps(
            {
                "task": {**task, "image_channels": 1, "modalities": []},
                "cases": {case: {"files": {"mask": [f"{case}.png"]}} for case in "abc"},
            }
        )
    )
    flags = (f"--predictions={predictions}", f"--output={tmp_path / 'report'}")
    done = command("evaluate.py", *flags, f"--references={tmp_path / 'plain'}")
    assert done.code == 0, done.stderr
    assert "masks_y/ has no mask of 1 of 3 cases" in done.stderr
    scores = json.loads((tmp_path / "report" / "metrics.json").read_text())
    # x beside the majority: of a the shared row, of b y's three, of c x or z, five.
    dice = scores["classes"]["foreground"]["dice"]["mean"]
    assert dice == pytest.approx(np.mean([2 / 4, 2 / 6, 6 / 8]))
    agreement = scores["uncertainty"]["rater_dice"]["foreground"]
    assert {rater: row["n_cases"] for rater, row in agreement.items()} == {"x": 2, "y": 1, "z": 2}
    assert agreement["x"]["mean"] == pytest.approx(np.mean([2 / 4, 6 / 8]))
    (tmp_path / "plain" / "masks_y" / "b.png").unlink()
    refused = command("evaluate.py", *flags, f"--references={tmp_path / 'plain'}").refusal
    assert "no mask of b, which has a prediction" in refused
