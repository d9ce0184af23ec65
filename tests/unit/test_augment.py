"""The image and its labels are changed alike, and only by what the settings allow."""

import numpy as np
import pytest
from scipy import ndimage

from medsegdiff_jax.augment import Augmentation, augment
from medsegdiff_jax.types import InputError

OFF = {"rotate_degrees": 0.0, "scale": 0.0, "translate": 0.0, "gamma": 0.0, "intensity": 0.0}
GEOMETRY = Augmentation(gamma=0.0, intensity=0.0, probability=1.0)
SIDE = 48


def painted(seed):
    """An image that shows its own labels, a lopsided blob, as intensity 0 or 1."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    y, x = np.random.default_rng(seed).uniform(14, SIDE - 14, 2)
    labels = ((rows - y) ** 2 + (columns - x) ** 2 <= 9**2) | ((rows > y) & (columns > x + 4))
    labels = labels.astype(np.uint8)
    return labels[..., None].astype(np.float32), labels


@pytest.mark.parametrize("seed", range(12))
def test_a_painted_mask_stays_on_its_image(seed):
    image, labels = painted(seed)
    changed, moved = augment(image, labels, np.random.default_rng(seed), GEOMETRY)
    # Bilinear and nearest sampling agree but where the four neighbours differ: on the outline.
    assert np.abs(changed[..., 0] - moved).max() <= 0.75
    outline = np.abs(np.diff(moved, axis=0)).sum() + np.abs(np.diff(moved, axis=1)).sum()
    assert (np.abs(changed[..., 0] - moved) > 1e-4).sum() <= 2 * outline
    assert not np.array_equal(moved, labels)
    assert set(np.unique(moved)) <= {0, 1}
    assert 0.3 * labels.sum() < moved.sum() < 3 * labels.sum()


def test_it_is_turned_both_ways():
    labels = np.zeros((33, 33), np.uint8)
    labels[16, 28] = 1  # to the right of the middle
    settings = Augmentation(flip=False, probability=1.0, **OFF | {"rotate_degrees": 40.0})
    rows = []
    for seed in range(40):
        blob = np.kron(labels[None], np.ones((1, 1, 1), np.uint8))
        wide = np.maximum.reduce(
            [np.roll(blob, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        )
        image = wide[0, ..., None].astype(np.float32)
        _, moved = augment(image, wide, np.random.default_rng(seed), settings)
        rows.append(np.nonzero(moved[0])[0].mean() - 16)
    assert min(rows) < -4 and max(rows) > 4  # sin(40 degrees) of 12 is 7.7


def test_light_may_fall_along_either_axis():
    image, labels = np.full((9, 9, 1), 0.5, np.float32), np.zeros((9, 9), np.uint8)
    settings = Augmentation(flip=False, probability=1.0, **OFF | {"intensity": 0.3})
    changed, _ = augment(image, labels, np.random.default_rng(0), settings)
    for axis in (0, 1):
        slope = np.diff(changed[..., 0], axis=axis)
        assert np.abs(slope).min() > 1e-3 and np.ptp(slope) < 1e-5


def test_the_same_generator_gives_the_same_example():
    image, labels = painted(0)
    image = image * 0.5 + 0.1
    first = augment(image, labels, np.random.default_rng(5), Augmentation())
    again = augment(image, labels, np.random.default_rng(5), Augmentation())
    other = augment(image, labels, np.random.default_rng(6), Augmentation())
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    "settings",
    [
        Augmentation(flip=False, probability=0.0),
        Augmentation(flip=False, probability=1.0, **OFF),
    ],
    ids=["never", "with strength zero"],
)
def test_switched_off_the_input_is_untouched(settings):
    image, labels = painted(1)
    image = np.random.default_rng(0).random(image.shape, dtype=np.float32)
    for seed in range(5):
        changed, moved = augment(image, labels, np.random.default_rng(seed), settings)
        np.testing.assert_allclose(changed, image, atol=1e-6)
        np.testing.assert_array_equal(moved, labels)


def test_flips_are_the_four_mirror_images():
    image, labels = painted(2)
    settings = Augmentation(flip=True, probability=0.0)
    views = [augment(image, labels, np.random.default_rng(seed), settings) for seed in range(40)]
    expected = [labels, labels[::-1], labels[:, ::-1], labels[::-1, ::-1]]
    for changed, moved in views:
        np.testing.assert_array_equal(changed[..., 0], moved)
        assert any(np.array_equal(moved, view) for view in expected)
    assert len({moved.tobytes() for _, moved in views}) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [("rotate_degrees", 90.0), ("scale", 0.5), ("translate", 0.2)],
)
def test_each_geometric_strength_moves_labels_and_image(field, value):
    image, labels = painted(3)
    settings = Augmentation(flip=False, probability=1.0, **(OFF | {field: value}))
    changed, moved = augment(image, labels, np.random.default_rng(1), settings)
    assert not np.array_equal(moved, labels)
    assert ((changed[..., 0] > 0.5) != moved).mean() < 0.01


@pytest.mark.parametrize(("field", "value"), [("gamma", 0.5), ("intensity", 0.3)])
def test_intensity_changes_leave_the_labels(field, value):
    image, labels = painted(4)
    image = np.random.default_rng(0).uniform(0.1, 0.9, image.shape).astype(np.float32)
    settings = Augmentation(flip=False, probability=1.0, **(OFF | {field: value}))
    changed, same = augment(image, labels, np.random.default_rng(1), settings)
    np.testing.assert_array_equal(same, labels)
    assert np.abs(changed - image).max() > 0.01
    assert changed.dtype == np.float32


def drawn(field, value, measure, probability=1.0):
    """What `measure` finds in 300 draws with one strength alone."""
    settings = Augmentation(flip=False, probability=probability, **(OFF | {field: value}))
    return np.array([measure(settings, np.random.default_rng(seed)) for seed in range(300)])


def dots(settings, rng):
    """Places of two dots, 16 pixels apart and around the middle, after an augmentation."""
    image = np.zeros((SIDE + 1, SIDE + 1, 2), np.float32)
    for channel, column in enumerate((16, 32)):
        image[SIDE // 2 - 1 : SIDE // 2 + 2, column - 1 : column + 2, channel] = 1
    moved, _ = augment(image, np.zeros(image.shape[:2], np.uint8), rng, settings)
    return np.array([ndimage.center_of_mass(moved[..., channel]) for channel in (0, 1)])


def zoom(settings, rng):
    """Logarithm of the distance of two dots over what it was."""
    left, right = dots(settings, rng)
    return np.log(np.linalg.norm(left - right) / 16)


def flat(level, exponent=False):
    """Mean, or the exponent, of what becomes of a constant image."""

    def measure(settings, rng):
        image = np.full((9, 9, 1), level, np.float32)
        changed, _ = augment(image, np.zeros((9, 9), np.uint8), rng, settings)
        mean = float(changed.mean())
        return np.log(np.log(mean) / np.log(level)) if exponent else mean - level

    return measure


@pytest.mark.parametrize(
    ("field", "value", "measure", "bound"),
    [
        ("scale", 0.25, zoom, np.log(1.25)),
        ("translate", 0.1, lambda s, rng: dots(s, rng)[0, 0] - SIDE // 2, 0.1 * (SIDE + 1)),
        ("translate", 0.1, lambda s, rng: dots(s, rng)[0, 1] - 16, 0.1 * (SIDE + 1)),
        ("gamma", 0.5, flat(0.4, exponent=True), np.log(1.5)),
        ("intensity", 0.3, flat(0.0), 0.3),  # brightness; nothing else changes black
    ],
    ids=["zoom", "down", "across", "gamma", "brightness"],
)
def test_strengths_are_reached_on_both_sides_and_not_passed(field, value, measure, bound):
    found = drawn(field, value, measure)
    assert np.abs(found).max() <= bound * 1.06  # dots are measured to a part of a pixel
    assert found.max() > 0.85 * bound and found.min() < -0.85 * bound
    assert np.abs(found.mean()) < 0.15 * bound


@pytest.mark.parametrize("field", ["translate", "gamma", "intensity"])
def test_each_change_has_the_probability_that_is_set(field):
    image, labels = painted(0)
    image = 0.5 * image + 0.2

    def changes(settings, rng):
        return not np.allclose(augment(image, labels, rng, settings)[0], image, atol=1e-4)

    assert drawn(field, 0.2, changes, probability=0.3).mean() == pytest.approx(0.3, abs=0.08)


def test_wrong_fields_are_named():
    with pytest.raises(InputError, match="data.augment.blur"):
        Augmentation.from_config({"blur": 1.0})
    for field, value in [("scale", -0.1), ("probability", 1.5), ("gamma", float("nan"))]:
        with pytest.raises(InputError, match=f"data.augment.{field}"):
            Augmentation.from_config({field: value})
