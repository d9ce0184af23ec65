"""Schedules against hand-computed numbers of their papers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsegdiff_jax import schedules
from medsegdiff_jax.types import InputError

ALL = [(kind, zero) for kind in ("linear", "cosine") for zero in (False, True)]


@pytest.mark.parametrize("num_timesteps", [1, 2, 5, 20, 100, 1000])
@pytest.mark.parametrize(("kind", "zero"), ALL)
def test_tables(kind, zero, num_timesteps):
    schedule = schedules.build(kind, num_timesteps, zero)
    alpha, sigma = np.asarray(schedule.alpha), np.asarray(schedule.sigma)
    assert alpha.dtype == sigma.dtype == np.float32
    assert alpha.shape == sigma.shape == (num_timesteps + 1,)
    assert schedule.num_steps == num_timesteps
    assert (alpha[0], sigma[0]) == (1.0, 0.0)
    np.testing.assert_allclose(alpha.astype(float) ** 2 + sigma.astype(float) ** 2, 1, atol=2e-7)
    assert (np.diff(alpha) < 0).all()
    # Signal to noise alpha / sigma falls strictly; row 0 has none.
    assert (np.diff(alpha[1:] / sigma[1:]) < 0).all()
    assert alpha[-1] < 0.04
    assert (alpha[-1] == 0.0) == zero
    if zero:
        assert sigma[-1] == 1.0


@pytest.mark.parametrize(
    ("t", "alpha_bar"),
    # prod_{i <= t} (1 - beta_i) with beta from 1e-4 to 0.02: the first is 1 - 1e-4; the second
    # 0.9999 * (1 - 1e-4 - 0.0199 / 999); the last is the well-known 4.0358e-5.
    [(1, 0.9999), (2, 0.99978009), (500, 0.0785872), (1000, 4.0358e-5)],
)
def test_linear_is_that_of_ho(t, alpha_bar):
    assert schedules.linear(1000).alpha[t] ** 2 == pytest.approx(alpha_bar, rel=2e-5)


@pytest.mark.parametrize(
    # f(t) / f(0), f = cos^2((t / T + 0.008) / 1.008 * pi / 2):
    # t/T = 1/4: cos^2(0.402045) / cos^2(0.0124666) = 0.8468805 / 0.9998446
    ("fraction", "alpha_bar"),
    [(0.25, 0.8470122), (0.5, 0.4938436), (0.75, 0.1442721)],
)
def test_cosine_is_its_formula(fraction, alpha_bar):
    schedule = schedules.cosine(1000)
    assert schedule.alpha[int(1000 * fraction)] ** 2 == pytest.approx(alpha_bar, rel=2e-6)
    # The formula depends on t / T alone.
    assert schedules.cosine(8).alpha[int(8 * fraction)] ** 2 == pytest.approx(alpha_bar, rel=2e-6)


def test_linear_keeps_the_total_noise_for_other_lengths():
    whole = schedules.linear(1000).alpha
    for num_timesteps in (100, 250):
        short = schedules.linear(num_timesteps).alpha
        assert short[num_timesteps // 2] == pytest.approx(whole[500], rel=0.03)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_zero_terminal_snr_is_algorithm_1_of_lin(kind):
    plain = schedules.build(kind, 1000, False).alpha.astype(float)
    zero = schedules.build(kind, 1000, True).alpha
    assert zero[1] == pytest.approx(plain[1], abs=1e-7)  # the first value stays
    # Affine in the plain table: constant ratio of differences.
    ratio = (zero[1] - zero[[300, 600, 900]]) / (plain[1] - plain[[300, 600, 900]])
    np.testing.assert_allclose(ratio, plain[1] / (plain[1] - plain[-1]), rtol=1e-5)


def test_refusals():
    with pytest.raises(InputError, match=r"^config field diffusion\.schedule: 'sigmoid'"):
        schedules.build("sigmoid", 1000, False)
    for kind in ("linear", "cosine"):
        with pytest.raises(InputError, match=r"^config field diffusion\.num_timesteps: 0"):
            schedules.build(kind, 0, False)


@settings(max_examples=200)
@given(st.data())
def test_trajectory_falls_from_t_to_0_in_even_strides(data):
    num_timesteps = data.draw(st.integers(1, 4000))
    num_steps = data.draw(st.integers(1, num_timesteps))
    path = schedules.trajectory(num_timesteps, num_steps)
    assert path.dtype == np.int32 and path.shape == (num_steps + 1,)
    assert path[0] == num_timesteps and path[-1] == 0
    strides = -np.diff(path)
    assert (strides >= 1).all()
    assert strides.max() - strides.min() <= 1
    even = num_timesteps * (1 - np.arange(num_steps + 1) / num_steps)
    assert np.abs(path - even).max() <= 0.5 + 1e-9


def test_trajectory_examples():
    assert schedules.trajectory(1000, 4).tolist() == [1000, 750, 500, 250, 0]
    assert schedules.trajectory(10, 3).tolist() == [10, 7, 3, 0]
    assert schedules.trajectory(3, 3).tolist() == [3, 2, 1, 0]
    assert schedules.trajectory(1000, 1).tolist() == [1000, 0]


@pytest.mark.parametrize("num_steps", [0, -1, 11])
def test_trajectory_refuses(num_steps):
    with pytest.raises(InputError, match=r"^steps: "):
        schedules.trajectory(10, num_steps)
