"""Pictures and tables: what is drawn is where it should be; files appear whole or not at all."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from medsegdiff_jax import atomic, report
from medsegdiff_jax.types import InputError, Task

BINARY = Task(("lesion",), (255,), exclusive=True, image_channels=3)
ORGANS = Task(("disc", "cup"), (1, 2), exclusive=True, image_channels=3)
REGIONS = Task(("whole", "core"), (1, 2), exclusive=False, image_channels=1)


@pytest.fixture
def square():
    """bool [64, 64, 1]: rows and columns 20..43."""
    regions = np.zeros((64, 64, 1), bool)
    regions[20:44, 20:44] = True
    return regions


def pixels(path):
    """Array of a PNG."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_overlay_outlines_the_region_and_leaves_the_rest_alone(square):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    before = image.copy()
    picture = report.overlay(image, square, None)
    np.testing.assert_array_equal(image, before)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    color = report.class_color(0).astype(np.uint8)
    painted = (picture == color).all(axis=-1)
    for row in (20, 43):
        assert painted[row, 20:44].all() and painted[20:44, row].all()
    changed = (picture != image).any(axis=-1)
    assert not changed[24:40, 24:40].any() and not changed[:16].any() and not changed[:, 48:].any()


def test_overlay_tints_what_is_uncertain_and_nothing_else():
    image = np.full((32, 32, 3), 100, np.uint8)
    doubt = np.zeros((32, 32), np.float32)
    doubt[:16] = 1.0
    picture = report.overlay(image, np.zeros((32, 32, 1), bool), doubt)
    expected = 100 + 0.5 * (report.UNCERTAINTY_COLOR - 100)
    np.testing.assert_allclose(picture[:16], np.broadcast_to(expected, (16, 32, 3)), atol=1)
    assert (picture[16:] == 100).all()


def test_a_dark_image_is_stretched_once_for_all_its_panels():
    """Its few bright spots vanish when it is shrunk."""
    rng = np.random.default_rng(0)
    image = rng.integers(5, 20, (1024, 1024, 1), dtype=np.uint8)
    image[rng.random(image.shape) < 0.01] = 220
    labels, nothing = np.zeros((1024, 1024), int), np.zeros((1024, 1024), np.float32)
    chance = np.stack([1 - nothing, nothing, nothing], axis=-1)
    shown = report.to_display(image)
    row = report.case_pictures("a", shown, labels, chance, nothing, ORGANS)
    np.testing.assert_array_equal(row.overlay, row.image)


def test_a_region_at_the_edge_of_the_picture_is_not_outlined_there():
    regions = np.zeros((32, 32, 1), bool)
    regions[:, :16] = True
    changed = (report.overlay(np.zeros((32, 32, 3), np.uint8), regions, None) > 0).any(axis=-1)
    assert not changed[:, 0].any() and changed[:, 15].all()


def test_to_display_stretches_deep_and_dark_images_and_keeps_bright_bytes():
    ramp = np.linspace(3000, 9000, 256).astype(np.uint16).reshape(16, 16, 1)
    shown = report.to_display(ramp)
    assert shown.shape == (16, 16, 3) and shown.min() == 0 and shown.max() == 255
    assert (report.to_display(np.full((4, 4, 1), 7, np.uint8)) == 7).all()
    bright, dark = (np.arange(top, dtype=np.uint8).reshape(8, -1, 1) for top in (200, 40))
    assert (report.to_display(bright) == bright).all()
    shown = report.to_display(dark)
    assert shown.min() == 0 and shown.max() == 255
    constant = report.to_display(np.full((4, 4, 2), 0.3, np.float32))
    assert constant.shape == (4, 4, 3) and constant.dtype == np.uint8


def test_foreground_and_regions_follow_the_task():
    labels = np.array([[0, 1], [2, 2]])
    np.testing.assert_array_equal(
        report.regions_of(labels, ORGANS), [[[0, 0], [1, 0]], [[0, 1], [0, 1]]]
    )
    np.testing.assert_array_equal(
        report.regions_of(labels + [[0, 2], [0, 0]], REGIONS), [[[0, 0], [1, 1]], [[0, 1], [0, 1]]]
    )
    chances = np.array([[[0.2, 0.5, 0.3]]])
    assert report.foreground(chances, ORGANS)[0, 0] == pytest.approx(0.8)
    assert report.foreground(chances[..., :2], REGIONS)[0, 0] == pytest.approx(0.5)


def test_contact_sheet_shows_each_case_in_its_row(tmp_path):
    rows = []
    for name, height, width in (("wide", 300, 640), ("a_very_long_name_of_a_case", 64, 48)):
        image = np.full((height, width, 3), 90, np.uint8)
        labels = np.zeros((height, width), np.int32)
        labels[: height // 2] = 255
        chance = (labels[..., None] / 255).astype(np.float32)
        rows.append(
            report.case_pictures(name, image, labels, chance, np.zeros(labels.shape), BINARY)
        )
    assert rows[0].image.shape == (150, 320, 3) and rows[1].mask.shape == (64, 48, 3)
    np.testing.assert_allclose(rows[0].probability[[10, -10], 5], [1, 0], atol=1e-6)
    report.write_contact_sheet(tmp_path / "sheet.png", rows, BINARY)
    sheet = pixels(tmp_path / "sheet.png")[..., :3]
    lesion = (sheet == report.class_color(0).astype(np.uint8)).all(axis=-1)
    # Half of each mask, beside outlines and the legend.
    assert lesion.mean() > 0.01
    top, bottom = np.flatnonzero(lesion[:, : sheet.shape[1] // 2].sum(axis=1) > 50)[[0, -1]]
    assert bottom - top > sheet.shape[0] / 4
    assert (sheet == 90).all(axis=-1).mean() > 0.05
    report.write_contact_sheet(tmp_path / "one.png", rows[:1], BINARY)
    assert pixels(tmp_path / "one.png").shape[0] < sheet.shape[0]


def write_lines(path, rows):
    """A metrics.jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_learning_curve_draws_losses_and_overlaps(tmp_path):
    log = [{"step": s, "loss/total": 1 / s, "images_per_second": 9.0} for s in range(1, 9)]
    losses = write_lines(tmp_path / "losses.jsonl", log)
    report.write_learning_curve(losses, tmp_path / "losses.png")
    log.append({"step": 8, "validation/dice": 0.7, "validation/iou": float("nan")})
    both = write_lines(tmp_path / "both.jsonl", log)
    report.write_learning_curve(both, tmp_path / "both.png")
    alone, beside = pixels(tmp_path / "losses.png"), pixels(tmp_path / "both.png")
    assert beside.shape[1] == 2 * alone.shape[1] and beside.std() > 5
    log[3]["loss/total"] = 3.0
    report.write_learning_curve(write_lines(losses, log[:8]), tmp_path / "peak.png")
    assert (pixels(tmp_path / "peak.png") != alone).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ('{"step": 1, "images_per_second": 3}\n', "no losses"),
        ('{"step": 1, "loss/total": 3}\nhalf a li', "line 2"),
        ('{"loss/total": 3}\n', "line 1"),
    ],
)
def test_learning_curve_names_a_log_that_cannot_be_drawn(tmp_path, text, message):
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"metrics\.jsonl: .*{message}"):
        report.write_learning_curve(path, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_dice_plot_moves_with_the_scores(tmp_path):
    for name, scores in (("low", [0.1, 0.2, np.nan]), ("high", [0.8, 0.9, 0.95])):
        report.write_dice_plot(
            tmp_path / f"{name}.png", {"lesion": np.array(scores), "none": np.array([np.nan])}
        )

    def center(name):
        """Mean column of the pixels in the colour of the first class."""
        picture = pixels(tmp_path / name)[..., :3].astype(int)
        colored = picture[..., 2] - picture[..., 0] > 60
        assert colored.any()
        return np.mean(np.nonzero(colored)[1]) / picture.shape[1]

    assert center("high.png") - center("low.png") > 0.3


def test_json_is_strict_and_numpy_becomes_numbers(tmp_path):
    tree = {
        "nan": float("nan"),
        "inf": np.float32(np.inf),
        "array": np.array([1.5, np.nan]),
        "pair": (np.int64(3), True),
        7: "größe",
    }
    atomic.write_json(tmp_path / "tree.json", tree)
    text = (tmp_path / "tree.json").read_text(encoding="utf-8")

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == {
        "nan": None,
        "inf": None,
        "array": [1.5, None],
        "pair": [3, True],
        "7": "größe",
    }
    assert text.endswith("}\n")


def test_csv_keeps_the_columns_and_nan(tmp_path):
    rows = [{"case": "a,b", "dice": 0.5}, {"case": "c", "dice": float("nan")}]
    atomic.write_csv(tmp_path / "rows.csv", rows)
    with open(tmp_path / "rows.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert read == [{"case": "a,b", "dice": "0.5"}, {"case": "c", "dice": "nan"}]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "tree.json"
    atomic.write_json(path, {"a": 1})
    assert path.stat().st_mode & 0o600 == 0o600

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        atomic.write_json(path, {"a": 2})
    assert [item.name for item in path.parent.iterdir()] == ["tree.json"]
    assert json.loads(path.read_text()) == {"a": 1}
