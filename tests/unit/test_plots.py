"""Plots: what is drawn follows the numbers."""

import json

import numpy as np
import pytest
from PIL import Image

from medsegdiff_jax import display, plots
from medsegdiff_jax.types import InputError, Task

BINARY = Task(("lesion",), (255,), exclusive=True, image_channels=3)


def pixels(path):
    """Array of a PNG."""
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_contact_sheet_shows_each_case_in_its_row(tmp_path):
    rows = []
    for name, height, width in (("wide", 300, 640), ("a_very_long_name_of_a_case", 64, 48)):
        image = np.full((height, width, 3), 90, np.uint8)
        labels = np.zeros((height, width), np.int32)
        labels[: height // 2] = 255
        chance = (labels[..., None] / 255).astype(np.float32)
        rows.append(
            display.case_pictures(name, image, labels, chance, np.zeros(labels.shape), BINARY)
        )
    assert rows[0].image.shape == (150, 320, 3) and rows[1].mask.shape == (64, 48, 3)
    np.testing.assert_allclose(rows[0].probability[[10, -10], 5], [1, 0], atol=1e-6)
    plots.write_contact_sheet(tmp_path / "sheet.png", rows, BINARY, 2)
    sheet = pixels(tmp_path / "sheet.png")[..., :3]
    lesion = (sheet == display.class_color(0).astype(np.uint8)).all(axis=-1)
    # Half of each mask, beside outlines and the legend.
    assert lesion.mean() > 0.01
    top, bottom = np.flatnonzero(lesion[:, : sheet.shape[1] // 2].sum(axis=1) > 50)[[0, -1]]
    assert bottom - top > sheet.shape[0] / 4
    assert (sheet == 90).all(axis=-1).mean() > 0.05
    plots.write_contact_sheet(tmp_path / "one.png", rows[:1], BINARY, 2)
    assert pixels(tmp_path / "one.png").shape[0] < sheet.shape[0]


def write_lines(path, rows):
    """A metrics.jsonl."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_learning_curve_draws_losses_and_overlaps(tmp_path):
    log = [{"step": s, "loss/total": 1 / s, "images_per_second": 9.0} for s in range(1, 9)]
    losses = write_lines(tmp_path / "losses.jsonl", log)
    plots.write_learning_curve(losses, tmp_path / "losses.png")
    log.append({"step": 8, "validation/dice": 0.7, "validation/iou": float("nan")})
    both = write_lines(tmp_path / "both.jsonl", log)
    plots.write_learning_curve(both, tmp_path / "both.png")
    alone, beside = pixels(tmp_path / "losses.png"), pixels(tmp_path / "both.png")
    assert beside.shape[1] == 2 * alone.shape[1] and beside.std() > 5
    log[3]["loss/total"] = 3.0
    plots.write_learning_curve(write_lines(losses, log[:8]), tmp_path / "peak.png")
    assert (pixels(tmp_path / "peak.png") != alone).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ('{"step": 1, "loss/total": 3}\nhalf a li', "line 2"),
        ('{"loss/total": 3}\n', "line 1"),
    ],
)
def test_learning_curve_names_a_log_that_cannot_be_drawn(tmp_path, text, message):
    path = tmp_path / "metrics.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=rf"metrics\.jsonl: .*{message}"):
        plots.write_learning_curve(path, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_learning_curve_of_a_log_with_nothing_to_draw_is_not_written(tmp_path):
    log = write_lines(tmp_path / "log.jsonl", [{"step": 1, "images_per_second": 3}])
    plots.write_learning_curve(log, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_dice_plot_moves_with_the_scores(tmp_path):
    for name, scores in (("low", [0.1, 0.2, np.nan]), ("high", [0.8, 0.9, 0.95])):
        plots.write_dice_plot(
            tmp_path / f"{name}.png", {"lesion": np.array(scores), "none": np.array([np.nan])}
        )

    def center(name):
        """Mean column of the pixels in the colour of the first class."""
        picture = pixels(tmp_path / name)[..., :3].astype(int)
        colored = picture[..., 2] - picture[..., 0] > 60
        assert colored.any()
        return np.mean(np.nonzero(colored)[1]) / picture.shape[1]

    assert center("high.png") - center("low.png") > 0.3


@pytest.mark.parametrize("name", ["a_$_5_$_x", "a$b$c", "one $", "$^$"])
def test_names_are_no_formulas(tmp_path, name):
    figure = plots.new_figure(2, 2)
    text = figure.text(0, 0.5, plots.plain(name))
    plots.write_figure(tmp_path / "text.png", figure)
    assert text._preprocess_math(text.get_text()) == (name, False)
    plots.write_dice_plot(tmp_path / "dice.png", {name: np.array([0.5, 0.7])})
