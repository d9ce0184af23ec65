"""Samplers against closed forms: exact denoisers, a perfect x0, the published steps.

If x_0 ~ N(m, d^2) then x_t ~ N(alpha m, alpha^2 d^2 + sigma^2) and, by Bayes,
E[x_0 | x_t] = m + alpha d^2 (x_t - alpha m) / (alpha^2 d^2 + sigma^2). With this denoiser and many
steps every sampler must return the distribution N(m, d^2) that it was made from. The probability
flow keeps each x at its quantile: from alpha_T m + sqrt(alpha_T^2 d^2 + sigma_T^2) z to m + d z.
"""

import dataclasses
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
        return process.from_x0(schedule, x0, x_t, t)

    return denoise


def bimodal_denoiser(schedule, place, share, width):
    """E[x_0 | x_t] where x_0 is near +place with this share, else near -place."""

    def denoise(x_t, t):
        alpha, sigma = process.coefficients(schedule, t, x_t)
        variance = (alpha * width) ** 2 + sigma**2
        log_odds = jnp.log(share / (1 - share)) + 2 * alpha * place * x_t / variance
        mode = place * jnp.tanh(log_odds / 2)
        x0 = mode + alpha * width**2 / variance * (x_t - alpha * mode)
        return process.from_x0(schedule, x0, x_t, t)

    return denoise


def tanh_denoiser(schedule):
    """Any smooth function that is not linear."""

    def denoise(x_t, t):
        alpha, sigma = process.coefficients(schedule, t, x_t)
        x0 = jnp.tanh(2 * x_t + alpha)
        return process.from_x0(schedule, x0, x_t, t)

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
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("kind", ["linear-zero-snr", "cosine"])
def test_exact_gaussian_denoiser_returns_its_distribution(kind, sampler, mean, std, keys):
    schedule = SCHEDULES[kind](1000)
    x_0 = run(gaussian_denoiser, (mean, std), schedule, 250, sampler, keys, (1,))
    assert x_0.mean() == pytest.approx(mean, abs=0.07 * std)
    assert x_0.std() == pytest.approx(std, abs=0.06 * std)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_finite_for_every_number_of_steps(kind, sampler, keys):
    num_timesteps = 4
    schedule = SCHEDULES[kind](num_timesteps)
    for steps in range(1, num_timesteps + 1):
        x_0 = run(gaussian_denoiser, (0.3, 0.6), schedule, steps, sampler, keys[:64], (2, 2, 1))
        assert np.isfinite(x_0).all()
        assert np.abs(x_0).max() < 6


@pytest.mark.parametrize("num_timesteps", [1, 1000])
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
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


@pytest.mark.parametrize("sampler", ["dpmpp", "dpmpp_sde"])
def test_second_order_is_the_algorithm_of_lu_et_al(sampler, keys):
    # Lu et al. 2022, algorithm 2 and its SDE variant, in float64 and in their variables: lambda, h,
    # r and D; first order in the last step.
    schedule = schedules.cosine(1000)
    path = schedules.trajectory(1000, 8)
    alpha, sigma = (np.float64(row)[path] for row in (schedule.alpha, schedule.sigma))
    x = x_T = np.float64(samplers.gaussian_like(keys[:5], jnp.zeros((5, 3))))
    with np.errstate(divide="ignore"):
        h = np.diff(np.log(alpha) - np.log(sigma))
    previous = None
    for i in range(8):
        x0 = D = np.tanh(2 * x + alpha[i])
        if 0 < i < 7:
            r = h[i - 1] / h[i]
            D = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
        previous = x0
        if sampler == "dpmpp":
            x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h[i]) * D
        else:
            step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys[:5], path[i])
            noise = np.float64(samplers.gaussian_like(step_keys, jnp.zeros((5, 3))))
            kept = -np.expm1(-2 * h[i])
            x = sigma[i + 1] / sigma[i] * np.exp(-h[i]) * x + alpha[i + 1] * kept * D
            x = x + sigma[i + 1] * np.sqrt(kept) * noise
    assert np.abs(x_T).max() > 0.5
    got = run(tanh_denoiser, (), schedule, 8, sampler, keys[:5], (3,))
    np.testing.assert_allclose(got, x, atol=2e-5)  # float32, amplified by the slope 2 of the tanh


def uniform_schedule(num_timesteps):
    """lambda = log(alpha / sigma) in equal steps from 8 to -8, below the clean row."""
    half = np.linspace(8, -8, num_timesteps)
    alpha, sigma = (1 / np.sqrt(1 + np.exp(sign * 2 * half)) for sign in (-1, 1))
    return schedules.Schedule(alpha=np.float32([1, *alpha]), sigma=np.float32([0, *sigma]))


def uneven_path(num_timesteps, steps):
    """From T to 1 in steps that are short and three times as long in turn, then 0."""
    stride = (num_timesteps - 1) // steps
    path = np.arange(num_timesteps, 0, -stride)
    path[1::2] += stride // 2
    return np.append(path, 0).astype(np.int32)


def spread(schedule, path, std, sampler):
    """The exact standard deviation of x_0, from its linear response to x_T and to every noise.

    Case i gets noise 1 in step i alone; the last case gets x_T of one standard deviation alone.
    """
    count = len(path)
    solver = samplers.SAMPLERS[sampler]

    def impulse(schedule, prediction, x_t, t, s, noise):
        return solver.step(schedule, prediction, x_t, t, s, jnp.float32(path == t)[:, None])

    denoise = gaussian_denoiser(schedule, 0.0, std)
    std_T = np.hypot(schedule.alpha[-1] * std, schedule.sigma[-1])
    x_T = jnp.zeros((count, 1)).at[-1].set(std_T)
    response = samplers.sample(
        denoise, schedule, path, x_T, jax.random.split(jax.random.key(0), count),
        dataclasses.replace(solver, step=impulse),
    )  # fmt: skip
    return np.sqrt((np.float64(response) ** 2).sum())


# The slope that is left to 1 or 2 at these steps is below 0.1; without r = h_prev / h, it is 1.
@pytest.mark.parametrize(
    ("sampler", "order"), [("ddim", 1), ("ddpm", 1), ("dpmpp", 2), ("dpmpp_sde", 2)]
)
def test_order_of_convergence(sampler, order):
    schedule, std = uniform_schedule(2049), 0.6
    errors = [
        abs(spread(schedule, uneven_path(2049, steps), std, sampler) - std) for steps in (128, 512)
    ]
    assert np.log(errors[0] / errors[1]) / np.log(4) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("sampler", "error"), [("ddim", 0.05), ("dpmpp", 0.002)])
@pytest.mark.parametrize("kind", ["cosine", "cosine-zero-snr"])
def test_the_probability_flow_keeps_quantiles(kind, sampler, error, keys):
    schedule = SCHEDULES[kind](1000)
    mean, std = 0.3, 0.6
    x_T = np.asarray(samplers.gaussian_like(keys, jnp.zeros((CASES, 1))))
    alpha, sigma = float(schedule.alpha[-1]), float(schedule.sigma[-1])
    exact = mean + std * (x_T - alpha * mean) / np.hypot(alpha * std, sigma)
    x_0 = run(gaussian_denoiser, (mean, std), schedule, 32, sampler, keys, (1,))
    found = np.sqrt(np.mean((x_0 - exact) ** 2))
    assert error / 4 < found < error


# Tolerance: four standard errors of the share (0.007), plus what 250 steps leave: 0.001 to 0.004.
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
@pytest.mark.parametrize("kind", ["linear", "cosine-zero-snr"])
def test_modes_keep_their_shares(kind, sampler, keys):
    place, share, width = 0.3, 0.3, 0.02
    x_0 = run(
        bimodal_denoiser, (place, share, width), SCHEDULES[kind](1000), 250, sampler, keys, (1,)
    )
    assert (x_0 > 0).mean() == pytest.approx(share, abs=0.033)
    assert np.mean(np.abs(np.abs(x_0) - place) < 5 * width) > 0.99


def test_ten_second_order_steps_lose_less_of_the_rarer_mode(keys):
    # The probability flow is monotone: x_T above its 0.7 quantile goes to the mode of share 0.3.
    schedule = SCHEDULES["cosine-zero-snr"](1000)
    x_T = np.asarray(samplers.gaussian_like(keys, jnp.zeros((CASES, 1))))
    reaching = (x_T > 0.5244005).mean()
    lost = {}
    for sampler in ("ddim", "dpmpp"):
        x_0 = run(bimodal_denoiser, (0.3, 0.3, 0.02), schedule, 10, sampler, keys, (1,))
        lost[sampler] = reaching - (x_0 > 0).mean()
    assert 0.012 < lost["ddim"] < 0.024  # 0.018 on a grid of quantiles
    assert 0.003 < lost["dpmpp"] < 0.011  # 0.007


@pytest.mark.parametrize(("second", "first"), [("dpmpp", "ddim"), ("dpmpp_sde", "ddpm")])
def test_one_step_is_of_first_order(second, first, keys):
    arguments = (gaussian_denoiser, (0.3, 0.6), SCHEDULES["cosine-zero-snr"](4), 1)
    x_0 = [run(*arguments, name, keys[:64], (2, 2, 1)) for name in (second, first)]
    np.testing.assert_array_equal(*x_0)


@pytest.mark.parametrize("num_timesteps", [1, 2, 3, 1000])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_midpoint_weights_are_finite_and_end_in_zeros(kind, num_timesteps):
    schedule = SCHEDULES[kind](num_timesteps)
    for steps in {1, min(10, num_timesteps), num_timesteps}:
        path = schedules.trajectory(num_timesteps, steps)
        weights = np.asarray(samplers.midpoint_weights(schedule, path))
        assert weights.shape == (steps,)
        assert weights[0] == weights[-1] == 0
        # The step before the second one is infinitely long where alpha_T = 0.
        inner = weights[1 + kind.endswith("zero-snr") : -1]
        assert np.isfinite(weights).all() and (inner > 0).all()


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_sde"])
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
    recorder = samplers.Sampler(record, second_order=False)
    samplers.sample(denoise, schedule, np.array([3, 2, 1, 0]), noise[:2], keys[:2], recorder)
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
