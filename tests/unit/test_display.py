"""Pictures for people: what is drawn is where it should be."""

import numpy as np
import pytest

from medsegdiff_jax import display
from medsegdiff_jax.types import Task

ORGANS = Task(("disc", "cup"), (1, 2), exclusive=True, image_channels=3)
REGIONS = Task(("whole", "core"), (1, 2), exclusive=False, image_channels=1)


@pytest.fixture
def square():
    """bool [64, 64, 1]: rows and columns 20..43."""
    regions = np.zeros((64, 64, 1), bool)
    regions[20:44, 20:44] = True
    return regions


def test_overlay_outlines_the_region_and_leaves_the_rest_alone(square):
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    before = image.copy()
    picture = display.overlay(image, square, None)
    np.testing.assert_array_equal(image, before)
    assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
    color = display.class_color(0).astype(np.uint8)
    painted = (picture == color).all(axis=-1)
    for row in (20, 43):
        assert painted[row, 20:44].all() and painted[20:44, row].all()
    changed = (picture != image).any(axis=-1)
    assert not changed[24:40, 24:40].any() and not changed[:16].any() and not changed[:, 48:].any()


def test_overlay_tints_what_is_uncertain_and_nothing_else():
    image = np.full((32, 32, 3), 100, np.uint8)
    doubt = np.zeros((32, 32), np.float32)
    doubt[:16] = 1.0
    picture = display.overlay(image, np.zeros((32, 32, 1), bool), doubt)
    expected = 100 + 0.5 * (display.UNCERTAINTY_COLOR - 100)
    np.testing.assert_allclose(picture[:16], np.broadcast_to(expected, (16, 32, 3)), atol=1)
    assert (picture[16:] == 100).all()


def test_a_dark_image_is_stretched_once_for_all_its_panels():
    """Its few bright spots vanish when it is shrunk."""
    rng = np.random.default_rng(0)
    image = rng.integers(5, 20, (1024, 1024, 1), dtype=np.uint8)
    image[rng.random(image.shape) < 0.01] = 220
    labels, nothing = np.zeros((1024, 1024), int), np.zeros((1024, 1024), np.float32)
    chance = np.stack([1 - nothing, nothing, nothing], axis=-1)
    shown = display.to_rgb(image)
    row = display.case_pictures("a", shown, labels, chance, nothing, ORGANS)
    np.testing.assert_array_equal(row.overlay, row.image)


def test_a_region_at_the_edge_of_the_picture_is_not_outlined_there():
    regions = np.zeros((32, 32, 1), bool)
    regions[:, :16] = True
    changed = (display.overlay(np.zeros((32, 32, 3), np.uint8), regions, None) > 0).any(axis=-1)
    assert not changed[:, 0].any() and changed[:, 15].all()


def test_to_rgb_stretches_deep_and_dark_images_and_keeps_bright_bytes():
    ramp = np.linspace(3000, 9000, 256).astype(np.uint16).reshape(16, 16, 1)
    shown = display.to_rgb(ramp)
    assert shown.shape == (16, 16, 3) and shown.min() == 0 and shown.max() == 255
    assert (display.to_rgb(np.full((4, 4, 1), 7, np.uint8)) == 7).all()
    bright, dark = (np.arange(top, dtype=np.uint8).reshape(8, -1, 1) for top in (200, 40))
    assert (display.to_rgb(bright) == bright).all()
    shown = display.to_rgb(dark)
    assert shown.min() == 0 and shown.max() == 255
    constant = display.to_rgb(np.full((4, 4, 2), 0.3, np.float32))
    assert constant.shape == (4, 4, 3) and constant.dtype == np.uint8


def test_foreground_and_regions_follow_the_task():
    labels = np.array([[0, 1], [2, 2]])
    np.testing.assert_array_equal(
        display.regions_of(labels, ORGANS), [[[0, 0], [1, 0]], [[0, 1], [0, 1]]]
    )
    np.testing.assert_array_equal(
        display.regions_of(labels + [[0, 2], [0, 0]], REGIONS), [[[0, 0], [1, 1]], [[0, 1], [0, 1]]]
    )
    chances = np.array([[[0.2, 0.5, 0.3]]])
    assert display.foreground(chances, ORGANS)[0, 0] == pytest.approx(0.8)
    assert display.foreground(chances[..., :2], REGIONS)[0, 0] == pytest.approx(0.5)
