"""Samplers against closed forms: the exact Gaussian denoiser, a perfect x0, Ho et al. eq. 7.

If x_0 ~ N(m, d^2) then x_t ~ N(alpha m, alpha^2 d^2 + sigma^2) and, by Bayes,
E[x_0 | x_t] = m + alpha d^2 (x_t - alpha m) / (alpha^2 d^2 + sigma^2). With this denoiser and many
steps every sampler must return the distribution N(m, d^2) that it was made from.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsegdiff_jax import process, samplers, schedules
from medsegdiff_jax.types import Prediction

CASES = 4096
SCHEDULES = {
    "linear": functools.partial(schedules.linear, zero_terminal_snr=False),
    "linear-zero-snr": functools.partial(schedules.linear, zero_terminal_snr=True),
    "cosine": functools.partial(schedules.cosine, zero_terminal_snr=False),
    "cosine-zero-snr": functools.partial(schedules.cosine, zero_terminal_snr=True),
}


def gaussian_denoiser(schedule, mean, std):
    """The exact E[x_0 | x_t] and the noise that goes with it."""

    def denoise(x_t, t):
        alpha, sigma = process.coefficients(schedule, t, x_t)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x0 = mean + gain * (x_t - alpha * mean)
        return Prediction(x0=x0, eps=(x_t - alpha * x0) / sigma)

    return denoise


def constant_denoiser(schedule, truth):
    """A network that always answers `truth`."""

    def denoise(x_t, t):
        alpha, sigma = process.coefficients(schedule, t, x_t)
        return Prediction(x0=truth, eps=(x_t - alpha * truth) / sigma)

    return denoise


@functools.partial(jax.jit, static_argnames=("make", "sampler", "shape"))
def _run(make, arguments, schedule, path, sampler, keys, shape):
    # Schedule and path are traced, so that schedules of one length share a compilation.
    x_T = samplers.gaussian_like(keys, jnp.zeros((len(keys), *shape)))
    denoise = make(schedule, *arguments)
    return samplers.sample(denoise, schedule, path, x_T, keys, samplers.SAMPLERS[sampler])


def run(make, arguments, schedule, steps, sampler, keys, shape):
    path = schedules.trajectory(schedule.num_steps, steps)
    return np.asarray(_run(make, arguments, schedule, path, sampler, keys, shape))


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(7), CASES)


# Tolerance: four standard errors of the mean (d / 64) and of the standard deviation (d / 90), plus
# the discretisation of 250 steps, measured below 0.01 d.
@pytest.mark.parametrize(("mean", "std"), [(0.3, 0.6), (-0.8, 0.25), (0.0, 1.0), (1.5, 2.0)])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("kind", ["linear-zero-snr", "cosine"])
def test_exact_gaussian_denoiser_returns_its_distribution(kind, sampler, mean, std, keys):
    schedule = SCHEDULES[kind](1000)
    x_0 = run(gaussian_denoiser, (mean, std), schedule, 250, sampler, keys, (1,))
    assert x_0.mean() == pytest.approx(mean, abs=0.07 * std)
    assert x_0.std() == pytest.approx(std, abs=0.06 * std)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_finite_for_every_number_of_steps(kind, sampler, keys):
    num_timesteps = 6
    schedule = SCHEDULES[kind](num_timesteps)
    for steps in range(1, num_timesteps + 1):
        x_0 = run(gaussian_denoiser, (0.3, 0.6), schedule, steps, sampler, keys[:64], (2, 2, 1))
        assert np.isfinite(x_0).all()
        assert np.abs(x_0).max() < 6


@pytest.mark.parametrize("num_timesteps", [1, 1000])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_perfect_x0_is_reached_exactly(kind, sampler, num_timesteps, keys):
    schedule = SCHEDULES[kind](num_timesteps)
    truth = jax.random.uniform(jax.random.key(1), (3, 4, 4, 2), minval=-0.3, maxval=0.3)
    steps = min(10, num_timesteps)
    x_0 = run(constant_denoiser, (truth,), schedule, steps, sampler, keys[:3], (4, 4, 2))
    np.testing.assert_array_equal(x_0, np.asarray(truth))


def test_last_step_returns_the_last_prediction_exactly(keys):
    # Unlike above, the prediction changes with x_t, and the returned x0 is that of the last call.
    schedule = schedules.cosine(20, zero_terminal_snr=True)
    calls = []

    def denoise(x_t, t):
        alpha, sigma = process.coefficients(schedule, t, x_t)
        x0 = jnp.tanh(x_t)
        prediction = Prediction(x0=x0, eps=(x_t - alpha * x0) / sigma)
        jax.debug.callback(lambda t, x: calls.append((int(t), np.array(x))), t, x0, ordered=True)
        return prediction

    x_0 = run(lambda schedule: denoise, (), schedule, 5, "ddpm", keys[:2], (3,))
    jax.effects_barrier()
    assert [t for t, _ in calls] == [20, 16, 12, 8, 4]
    np.testing.assert_array_equal(x_0, calls[-1][1])


@pytest.mark.parametrize("t", [2, 3, 10, 250, 500, 999, 1000])
def test_ddpm_between_neighbours_is_ho_equation_7(t):
    # Independent float64 recomputation from the betas of Ho et al. 2020, section 4.
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - beta)])
    beta_t, bar_t, bar_s = beta[t - 1], alpha_bar[t], alpha_bar[t - 1]
    x_0, x_t = 0.7, -1.3
    mean = (
        np.sqrt(bar_s) * beta_t / (1 - bar_t) * x_0
        + np.sqrt(1 - beta_t) * (1 - bar_s) / (1 - bar_t) * x_t
    )
    std = np.sqrt((1 - bar_s) / (1 - bar_t) * beta_t)

    schedule = schedules.linear(1000)
    prediction = Prediction(x0=jnp.full((1, 1), x_0), eps=jnp.full((1, 1), jnp.nan))
    step = functools.partial(
        samplers.ddpm_step, schedule, prediction, jnp.full((1, 1), x_t), jnp.int32(t),
        jnp.int32(t - 1),
    )  # fmt: skip
    got_mean = float(step(jnp.zeros((1, 1)))[0, 0])
    got_std = float(step(jnp.ones((1, 1)))[0, 0]) - got_mean
    # float32 tables: beta_t is the difference of two numbers near 1, relative error about 1e-5.
    assert got_mean == pytest.approx(mean, abs=2e-5)
    assert got_std == pytest.approx(std, abs=2e-5)


def test_ddim_step_keeps_the_noise_direction():
    # alpha_bar(350) = prod of 1 - beta over Ho et al.'s first 350 betas.
    bar_s = 0.2851995
    prediction = Prediction(x0=jnp.full((1, 1), 0.5), eps=jnp.full((1, 1), -2.0))
    got = samplers.ddim_step(
        schedules.linear(1000), prediction, jnp.full((1, 1), jnp.nan), 500, 350, jnp.zeros((1, 1))
    )
    expected = np.sqrt(bar_s) * 0.5 - 2.0 * np.sqrt(1 - bar_s)
    assert float(got[0, 0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_a_case_does_not_depend_on_its_batch(sampler, keys):
    schedule = schedules.linear(100, zero_terminal_snr=True)
    arguments = (gaussian_denoiser, (0.3, 0.6), schedule, 10, sampler)
    together = run(*arguments, keys[:3], (4, 4, 1))
    for case in range(3):
        alone = run(*arguments, keys[case : case + 1], (4, 4, 1))
        # Same random numbers; the arithmetic may be vectorised differently for another batch.
        np.testing.assert_allclose(alone[0], together[case], rtol=0, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_noise_differs_between_steps_and_cases(keys):
    noise = samplers.gaussian_like(keys, jnp.zeros((CASES, 8)))
    assert noise.shape == (CASES, 8)
    assert float(noise.mean()) == pytest.approx(0, abs=5 / np.sqrt(CASES * 8))
    assert float(noise.std()) == pytest.approx(1, abs=5 / np.sqrt(2 * CASES * 8))
    assert len(np.unique(np.asarray(noise[:, 0]))) > CASES - 5

    seen = []
    schedule = schedules.linear(3)

    def record(schedule, prediction, x_t, t, s, noise):
        jax.debug.callback(lambda n: seen.append(np.array(n)), noise, ordered=True)
        return x_t

    denoise = gaussian_denoiser(schedule, 0.0, 1.0)
    samplers.sample(denoise, schedule, np.array([3, 2, 1, 0]), noise[:2], keys[:2], record)
    jax.effects_barrier()
    flat = np.stack(seen + [np.asarray(noise[:2])]).ravel()
    assert len(np.unique(flat)) == flat.size


def test_convolution_of_the_denoiser_is_traced_once(keys):
    # One scan: the body is compiled once, whatever the number of steps.
    schedule = schedules.linear(50)
    traces = []

    def make(schedule):
        def denoise(x_t, t):
            traces.append(t.shape)
            return gaussian_denoiser(schedule, 0.0, 1.0)(x_t, t)

        return denoise

    run(make, (), schedule, 50, "ddim", keys[:2], (2,))
    assert traces == [()]
