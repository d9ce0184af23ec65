"""A folder from disk to batches: what is refused, how it is split, when it is prepared again."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from configs import base
from data import builder, staging
from medsegdiff_jax import input_pipeline
from medsegdiff_jax.types import InputError
from tests.layouts import check_refused, remove, save_image, text

SIDE = 12


def mask(value=255):
    """A square of 6 x 6 pixels of the value on 0."""
    labels = np.zeros((SIDE, SIDE), np.uint8)
    labels[3:9, 3:9] = value
    return labels


@pytest.fixture
def root(tmp_path):
    """Six grey cases a ... f with one mask each, and all three lists."""
    folder = tmp_path / "input"
    rng = np.random.default_rng(0)
    for name in "abcdef":
        image = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
        save_image(folder / "images" / f"{name}.png", image)
        save_image(folder / "masks" / f"{name}.png", mask())
    for split, names in (("train", "abcd"), ("val", "e"), ("test", "f")):
        (folder / f"{split}.txt").write_text("\n".join(names) + "\n")
    return folder


def config(root, image_size=8):
    """The data config of a folder; the cache lies beside it."""
    data = base.get_config().data
    data.path, data.image_size = str(root), image_size
    data.cache_dir = str(root.parent / "cache")
    return data


def load(root, **kwargs):
    """The dataset of a folder."""
    return input_pipeline.load(config(root, **kwargs))


def ids(dataset):
    """Split -> case ids."""
    return {
        split: [example["id"].decode() for example in source]
        for split, source in dataset.sources.items()
    }


def put(name, array):
    """Damage: this image at root/name."""
    return lambda root: save_image(root / name, array)


def truncate(name):
    """Damage: half of the file at root/name."""
    return lambda root: os.truncate(root / name, (root / name).stat().st_size // 2)


def no_images(root):
    for path in (root / "images").iterdir():
        path.unlink()


def undeclared_value(root):
    text("dataset.json", '{"classes": {"lesion": 255}}')(root)
    put("masks/b.png", STRAY)(root)


def not_finite(root):
    remove("images/b.png")(root)
    save_image(root / "images" / "b.tif", np.full((SIDE, SIDE), np.nan, np.float32))


def lossy_masks(root):
    for path in (root / "masks").iterdir():
        path.unlink()
        disc = np.hypot(*(np.mgrid[:SIDE, :SIDE] - 5.3)) < 4.2
        save_image(path.with_suffix(".jpg"), disc.astype(np.uint8) * 255, quality=60)


def all_empty(root):
    for path in (root / "masks").iterdir():
        save_image(path, mask(0))


STRAY = np.where(np.eye(SIDE), 17, mask()).astype(np.uint8)
COLOUR = np.eye(3, dtype=np.uint8)[mask() // 255]
WIDE = np.zeros((SIDE, SIDE + 1), np.uint8)
REFUSED = {
    "folder": (shutil.rmtree, "no folder at {root}"),
    "images folder": (remove("images"), "{root}: has no folder images/"),
    "no images": (no_images, "{root}/images: no image"),
    "masks folder": (remove("masks"), "{root}: has neither masks/"),
    "orphan": (put("masks/z.png", mask()), "mask without image: {root}/masks/z.png"),
    "no mask": (remove("masks/b.png"), "image without mask: {root}/images/b.png"),
    "stem": (put("images/b.bmp", mask()), "{root}/images: b.bmp and b.png share a stem"),
    "size": (put("masks/b.png", WIDE), "masks/b.png: is 13x12, its image {root}/images/b.png is 1"),
    "turned": (
        lambda root: [put("masks/b.png", WIDE)(root), put("images/b.png", WIDE.T)(root)],
        "masks/b.png: is 13x12, its image {root}/images/b.png is 12x13 (EXIF rotation is not",
    ),
    "stray value": (put("masks/b.png", STRAY), "{root}/masks/b.png: label values 17 beside 255"),
    "undeclared value": (undeclared_value, "{root}/masks/b.png: label values 17 are not in"),
    "jpeg masks": (lossy_masks, "{root}/masks/a.jpg: JPEG compression left"),
    "colour mask": (put("masks/b.png", COLOUR), "{root}/masks/b.png: a mask holds labels in one"),
    "unknown entry": (text("val.txt", "e\nz\n"), "{root}/val.txt: no image in images/ for z"),
    "listed twice": (text("test.txt", "a\n"), "test.txt: case a is already listed in train.txt"),
    "two lists": (text("validation.txt", "e\n"), "{root}: has both val.txt and validation.txt"),
    "truncated image": (
        truncate("images/b.png"),
        "{root}/images/b.png: cannot be read as an image",
    ),
    "truncated mask": (truncate("masks/b.png"), "{root}/masks/b.png: cannot be read as an image"),
    "non-finite": (not_finite, "{root}/images/b.tif: holds non-finite pixels"),
    "depths": (put("images/b.png", mask().astype(np.uint16)), "{root}/images/b.png is uint16"),
    "two conventions": (
        put("masks/b.png", mask(1)),
        "{root}/masks/b.png: mark with 1 where other masks have 255",
    ),
    "all empty": (all_empty, "{root}/masks: every mask is empty"),
    "broken json": (text("dataset.json", '{"classes": '), "{root}/dataset.json: cannot be read as"),
    "no classes": (text("dataset.json", '{"labels": {}}'), "{root}/dataset.json: needs"),
    "fraction": (
        text("dataset.json", '{"classes": {"a": 1.9}}'),
        "{root}/dataset.json: label values must be different integers",
    ),
    "words for truth": (
        text("dataset.json", '{"classes": {"a": 1}, "exclusive": "false"}'),
        "{root}/dataset.json: exclusive is true or false",
    ),
    "equal values": (
        text("dataset.json", '{"classes": {"a": 1, "b": 1}}'),
        "{root}/dataset.json: label values must be different",
    ),
    "odd regions": (
        text("dataset.json", '{"classes": {"a": 1, "b": 3}, "exclusive": false}'),
        "{root}/dataset.json: overlapping regions need powers of two",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(root, name):
    check_refused(root, *REFUSED[name], load)
    assert not list(root.parent.glob("cache/folder/*"))


@pytest.mark.parametrize(
    ("field", "value"), [("path", ""), ("image_size", 0), ("validation_fraction", 1.0)]
)
def test_wrong_fields_are_named(root, field, value):
    data = config(root)
    data[field] = value
    with pytest.raises(InputError, match=f"data.{field}"):
        input_pipeline.load(data)


def test_a_folder_becomes_a_dataset(root):
    dataset = load(root)
    assert ids(dataset) == {"train": list("abcd"), "validation": ["e"], "test": ["f"]}
    assert dataset.task.classes == ("foreground",) and dataset.task.label_values == (255,)
    assert dataset.image_shape == (8, 8, 1)
    example = dataset.sources["train"][0]
    assert example["image"].dtype == np.uint8 and example["labels"].shape == (1, 8, 8)
    np.testing.assert_array_equal(example["size"], [SIDE, SIDE])
    expected = np.zeros((8, 8))
    expected[2:6, 2:6] = 255  # 3 ... 9 of 12 pixels are 2 ... 6 of 8
    np.testing.assert_array_equal(example["labels"][0], expected)
    assert dataset.report.splitlines() == [
        f"data folder {root}",
        "  cases   train 4, validation 1, test 1",
        "  images  6 grey uint8, width 12/12/12, height 12/12/12 (min/median/max)",
        "  masks   1 per case, 0 of 6 empty",
        "  labels  0: background 75%, 255: foreground 25%",
    ]


def test_an_exif_rotation_is_not_applied_and_noted(root):
    exif = Image.Exif()
    exif[274] = 6
    Image.open(root / "images" / "b.png").save(root / "images" / "b.png", exif=exif)
    damaged = Image.open(root / "images" / "c.png")
    damaged.save(root / "images" / "c.png", exif=b"Exif\x00\x00nonsense")
    assert load(root).report.endswith("note    of 1 images an EXIF rotation is not applied: b.png")


def test_the_report_counts_empty_masks_and_names_unused_images(root):
    save_image(root / "masks" / "a.png", mask(0))
    (root / "train.txt").write_text("a\nb\n")
    lines = load(root).report.splitlines()
    assert lines[1] == "  cases   train 2, validation 1, test 1"
    assert lines[3] == "  masks   1 per case, 1 of 4 empty"
    assert lines[5] == "  note    2 images in no split: c, d"


def test_batches_of_the_disc_folder(disc_folder, tiny_config):
    dataset = input_pipeline.load(tiny_config.data)
    assert {split: len(source) for split, source in dataset.sources.items()} == {
        "train": 16,
        "validation": 4,
        "test": 4,
    }
    batch = next(input_pipeline.train_batches(dataset, tiny_config.data, batch_size=8, seed=0))
    assert batch["image"].shape == (8, 16, 16, 3) and batch["mask"].shape == (8, 16, 16, 1)
    np.testing.assert_allclose(batch["image"].mean(axis=(1, 2)), 0, atol=1e-5)
    assert set(np.unique(batch["mask"])) == {0, 1}
    (batch,) = input_pipeline.eval_batches(dataset, "test", batch_size=4)
    for image, region in zip(batch["image"].mean(axis=-1), batch["mask"][..., 0], strict=True):
        assert image[region == 1].mean() > image[region == 0].mean() + 1  # the disc is bright


def test_listed_test_images_may_lack_masks(root):
    (root / "masks" / "f.png").unlink()
    assert ids(load(root))["test"] == []


def records(root):
    """Record file -> modification time, over all prepared versions."""
    found = (root.parent / "cache" / "folder").rglob("*.array_record*")
    return {path: path.stat().st_mtime_ns for path in found}


def test_an_unchanged_folder_is_not_prepared_again(root, monkeypatch):
    first = load(root)
    before = records(root)
    assert before

    def unexpected(*args, **kwargs):
        raise AssertionError("read again")

    monkeypatch.setattr(builder, "stage", unexpected)
    again = load(root)
    assert records(root) == before
    assert again.fingerprint == first.fingerprint and again.report == first.report
    elsewhere = root.with_name("elsewhere")
    shutil.copytree(root, elsewhere)
    assert load(elsewhere).report.startswith(f"data folder {elsewhere}\n")


def test_any_change_makes_a_new_dataset(root):
    (root / "masks" / "a.png").unlink()
    path = root / "masks" / "a.bmp"  # uncompressed: other pixels, same size
    save_image(path, mask())
    size = path.stat().st_size
    prints = [load(root).fingerprint]
    os.utime(path, ns=(1, 1))  # the same content at another time
    assert load(root).fingerprint == prints[0]
    save_image(path, np.roll(mask(), 1))
    assert path.stat().st_size == size
    prints.append(load(root).fingerprint)
    np.testing.assert_array_equal(load(root).sources["train"][0]["labels"][0][:, 0], 0)
    (root / "train.txt").write_text("b\na\nc\nd\n")
    prints.append(load(root).fingerprint)
    assert ids(load(root))["train"] == list("bacd")
    (root / "dataset.json").write_text('{"classes": {"lesion": 255}}')
    prints.append(load(root).fingerprint)
    prints.append(load(root, image_size=6).fingerprint)
    assert len(set(prints)) == len(prints)


def counting(read):
    """`staging.read_case` that also notes the cases it reads."""
    original = staging.read_case

    def read_case(case, *args):
        read.append(case.id)
        return original(case, *args)

    return read_case


def test_an_interrupted_preparation_goes_on_where_it_stopped(root, monkeypatch):
    original, done = staging.read_case, []

    def interrupted(case, *args):
        if case.id == "e":
            raise KeyboardInterrupt
        done.append(case.id)
        return original(case, *args)

    with monkeypatch.context() as patch:
        patch.setattr(staging, "read_case", interrupted)
        patch.setattr(builder, "default_threads", lambda: 1)
        with pytest.raises(KeyboardInterrupt):
            load(root)
    assert not list((root.parent / "cache").rglob("dataset_info.json"))
    before = set(done)
    assert {"a", "b", "c", "d"} <= before
    with monkeypatch.context() as patch:
        patch.setattr(staging, "read_case", counting(done))
        assert ids(load(root))["train"] == list("abcd")
    assert len(done) == len(set(done)) == 6  # nothing was read twice
    assert not list((root.parent / "cache" / "staged").rglob("*.npz"))


def test_mending_one_file_leaves_the_others_staged(root, monkeypatch):
    good = (root / "masks" / "f.png").read_bytes()
    truncate("masks/f.png")(root)
    monkeypatch.setattr(builder, "default_threads", lambda: 1)
    with pytest.raises(InputError, match=r"f\.png"):
        load(root)
    (root / "masks" / "f.png").write_bytes(good)
    read = []
    monkeypatch.setattr(staging, "read_case", counting(read))
    assert ids(load(root))["test"] == ["f"]
    assert read == ["f"]


def test_the_same_image_in_two_splits_is_reported(root):
    shutil.copy(root / "images" / "a.png", root / "images" / "f.png")
    notes = [line for line in load(root).report.splitlines() if "note" in line]
    assert notes == [
        f"  note    the same image in two splits: {root}/images/a.png (train) = "
        f"{root}/images/f.png (test)"
    ]


def test_several_raters(root):
    shutil.copytree(root / "masks", root / "masks_one")
    for path in (root / "masks").iterdir():
        save_image(root / "masks_two" / path.name, np.roll(mask(), 3, axis=0))
    dataset = load(root, image_size=SIDE)
    labels = dataset.sources["train"][0]["labels"]
    np.testing.assert_array_equal(labels, [mask(), np.roll(mask(), 3, axis=0)])
    assert "  masks   2 per case (one, two), 0 of 12 empty" in dataset.report
    (batch,) = input_pipeline.eval_batches(dataset, "test", batch_size=1)
    np.testing.assert_array_equal(batch["mask"][0, :, :, 0], labels.any(axis=0))  # 1 of 2 is half


def test_unnamed_classes_are_named_by_their_values(root):
    labels = mask(1)
    labels[5:7, 5:7] = 3
    save_image(root / "masks" / "b.png", labels)
    for name in "acdef":
        save_image(root / "masks" / f"{name}.png", mask(1))
    task = load(root).task
    assert task.classes == ("class_1", "class_3") and task.label_values == (1, 3)
    assert task.exclusive and task.mask_channels == 3


@pytest.mark.parametrize("exclusive", [True, False])
def test_declared_classes(root, exclusive):
    fields = {"classes": {"disc": 1, "cup": 2}, "exclusive": exclusive}
    (root / "dataset.json").write_text(json.dumps(fields))
    labels = mask(1)
    labels[5:7, 5:7] = 2 if exclusive else 3
    for path in (root / "masks").iterdir():
        save_image(path, labels)
    dataset = load(root, image_size=SIDE)
    assert dataset.task.classes == ("disc", "cup") and dataset.task.exclusive is exclusive
    (batch,) = input_pipeline.eval_batches(dataset, "test", batch_size=1)
    disc = labels == 1 if exclusive else labels > 0
    channels = [labels == 0, disc, labels > 1] if exclusive else [disc, labels > 1]
    np.testing.assert_array_equal(batch["mask"][0], np.stack(channels, axis=-1))
    name = "cup" if exclusive else "disc+cup"
    assert f"{name} 2.78%" in dataset.report  # 4 of 144 pixels


def test_grey_and_colour_images_become_colour(root):
    save_image(root / "images" / "b.png", np.dstack([mask(200), mask(0), mask(0)]))
    dataset = load(root, image_size=SIDE)
    assert dataset.image_shape == (SIDE, SIDE, 3)
    grey, colour = (dataset.sources["train"][i]["image"] for i in (0, 1))
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    np.testing.assert_array_equal(colour[..., 0], mask(200))
    assert "5 grey, 1 RGB uint8" in dataset.report


def test_sixteen_bit_images_stay_so(root):
    for path in (root / "images").iterdir():
        save_image(path, mask(1).astype(np.uint16) * 40000)
    image = load(root, image_size=SIDE).sources["train"][0]["image"]
    assert image.dtype == np.uint16 and image.max() == 40000
