"""The ideal observer of the phantoms: closed forms."""

import numpy as np
import pytest

from benchmarks import ideal_observer
from medsegdiff_jax import process, schedules


def test_two_possible_masks_are_weighed_by_their_likelihoods():
    masks = np.zeros((1, 2, 4, 4), np.float32)
    masks[0, 0, :2], masks[0, 1, :3] = 1, 1  # they differ in one row, 4 pixels
    alpha, scale, sigma = 0.6, 0.5, 0.9
    x_0 = alpha * scale * (2 * masks - 1)
    found = ideal_observer.ideal(x_0[:, 0], x_0, masks, sigma)
    # Each of the 4 pixels is 2 alpha scale away from the wrong mask.
    odds = np.exp(-4 * (2 * alpha * scale) ** 2 / (2 * sigma**2))
    np.testing.assert_allclose(found[0, 2], odds / (1 + odds), rtol=1e-6)
    np.testing.assert_allclose(found[0, :2], 1, rtol=1e-6)
    np.testing.assert_array_equal(found[0, 3], 0)
    between = x_0.mean(axis=1)
    np.testing.assert_allclose(ideal_observer.ideal(between, x_0, masks, sigma)[0, 2], 0.5)


def test_following_is_the_slope_within_a_case():
    areas = np.array([[10.0, 200.0], [20.0, 260.0], [60.0, 230.0]])
    assert ideal_observer.following(areas, areas) == 1
    assert ideal_observer.following(np.full((3, 2), 7.0), areas) == 0
    other_means = 0.25 * areas + np.array([5.0, -30.0])
    np.testing.assert_allclose(ideal_observer.following(other_means, areas), 0.25)


def test_cross_entropy_of_a_coin_and_of_a_sure_mistake():
    mask = np.array([0.0, 1.0])
    np.testing.assert_allclose(ideal_observer.cross_entropy(np.full(2, 0.5), mask), np.log(2))
    sure = ideal_observer.cross_entropy(1 - mask, mask)
    np.testing.assert_allclose(sure, -np.log(ideal_observer.CLIPPED))


class SeesSigns:
    """An observer of masks far above the noise: the sign of a pixel is its answer."""

    side = 32
    process = process.Process(schedules.build("cosine", 1000, True), 100.0, "x0", False)

    def __init__(self):
        self.spread = {}

    def __call__(self, x_t, t):
        """As `Observer`."""
        self.spread[t] = x_t.std()
        return (x_t > 0).astype(np.float32)


def test_who_sees_the_mask_follows_it_and_who_sees_noise_does_not(monkeypatch):
    monkeypatch.setattr(ideal_observer, "RATERS", 6)
    monkeypatch.setattr(ideal_observer, "OTHERS", 20)
    observer = SeesSigns()
    first, *rest = ideal_observer.measure(observer)
    assert first["t"] == 1000 and first["signal_to_noise"] == 0
    assert 0.98 < observer.spread[1000] < 1.02  # nothing but noise
    assert abs(first["model_following"]) < 0.3 and first["model_ce"] > 3
    assert abs(first["ideal_following"]) < 1e-6 and first["ideal_ce"] < 0.5
    for row in rest:
        assert row["model_following"] == pytest.approx(1, abs=1e-3)
        assert row["model_ce"] == pytest.approx(-np.log(1 - ideal_observer.CLIPPED), rel=0.01)


def test_a_model_of_other_images_is_refused(tiny_model, monkeypatch):
    monkeypatch.setattr(ideal_observer.checkpoint, "load_model", lambda path: tiny_model)
    with pytest.raises(ideal_observer.InputError, match="runs/x: was not trained on binary phan"):
        ideal_observer.Observer("runs/x")


def test_raters_have_the_networks_size_and_differ():
    masks = ideal_observer.raters(32, 2, seed=1)
    assert masks.shape == (ideal_observer.CASES, 2, 32, 32) and set(np.unique(masks)) == {0, 1}
    assert (masks[:, 0] != masks[:, 1]).any(axis=(1, 2)).all()
