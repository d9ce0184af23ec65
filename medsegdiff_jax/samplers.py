"""Samplers: from noise x_T to a clean sample x_0 along a falling list of timesteps.

A sampler knows a schedule and a function (x_t, t) -> Prediction; it never sees a network. A step
goes from t to any earlier s, so fewer steps than T are a shorter list (`schedules.trajectory`).
Deterministic or ancestral, first or second order: these two choices make the four samplers.

| | first order | second order |
| --- | --- | --- |
| deterministic | ddim | dpmpp |
| ancestral | ddpm | dpmpp_sde |

*DDPM* (Ho et al. 2020, algorithm 2, on a respaced list): draw x_s from q(x_s | x_t, x_0), the
Gaussian derived in `process`, with the predicted x0 in the place of x_0.

*DDIM* (Song et al. 2021, "Denoising diffusion implicit models", eq. 12 with sigma = 0): keep the
predicted noise and move it to the level of s, x_s = alpha_s x0 + sigma_s eps. No new noise, so the
result is a function of x_T alone. It is the Euler step of the probability-flow ODE in
x_t / alpha_t against sigma_t / alpha_t, yet free of a division by alpha_t, so it also starts from
alpha_T = 0.

*DPM-Solver++ 2M* (Lu et al. 2022, "DPM-Solver++", algorithm 2, and its SDE variant in the
appendix). In l = log(alpha / sigma), with x0(l) the prediction along the path and h = l_s - l_t,
the probability-flow ODE and the reverse SDE have the solutions

    x_s = (sigma_s / sigma_t) x_t + alpha_s int_{l_t}^{l_s} e^(l - l_s) x0(l) dl
    x_s = (sigma_s / sigma_t) e^-h x_t + 2 alpha_s int_{l_t}^{l_s} e^(2 (l - l_s)) x0(l) dl
          + sigma_s sqrt(1 - e^(-2 h)) noise

With x0(l) held at x0(l_t) the integrals are alpha_s (1 - e^-h) x0 and alpha_s (1 - e^(-2 h)) x0:
because e^-h = alpha_t sigma_s / (alpha_s sigma_t), these are the steps of DDIM and of DDPM. Held at
its value in the middle of the step, the error per step falls from O(h^2) to O(h^3). The prediction
made at u, one step of length h_prev = l_t - l_u before, gives that value by a straight line:

    x0(l_t + h / 2) = x0 + w (x0 - x0_prev),   w = h / (2 h_prev)

So the second-order samplers are the first-order steps with this x0 and the noise that belongs to
it. w is 0 in the first step, which has no past, and in the last, where l_s is infinite; where
alpha_T = 0 it is 0 in the second step too, since h_prev is infinite.

In all of them, the row s = 0 of the schedule is (1, 0): the last step returns the predicted x0
exactly.

*Randomness is an address.* The noise of case b at timestep t comes from fold_in(keys[b], t): it
depends neither on the other cases of the batch nor on the number of devices. Draw x_T from `keys`
themselves (`gaussian_like(keys, x)`): fold_in keeps that stream apart from the steps'.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from medsegdiff_jax.process import coefficients, from_x0, posterior
from medsegdiff_jax.schedules import Schedule
from medsegdiff_jax.types import Array, DenoiseFn, Prediction

UpdateFn = Callable[[Schedule, Prediction, Array, Array, Array, Array], Array]
"""(schedule, prediction, x_t, t, s, noise) -> x_s, s < t."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How to go from x_t to x_s.

    Attributes:
      step: from a prediction at x_t to x_s, such as `ddim_step`; does not call the denoiser.
      second_order: give it the x0 expected in the middle of the step, not the one of its start.
    """

    step: UpdateFn
    second_order: bool


def ddpm_step(
    schedule: Schedule, prediction: Prediction, x_t: Array, t: Array, s: Array, noise: Array
) -> Array:
    """Ancestral step: x_s ~ q(x_s | x_t, x0) (Ho et al. 2020, eq. 7 and algorithm 2).

    Args:
      schedule: tables of length T+1.
      prediction: at (x_t, t), or the one expected in the middle of the step.
      x_t: [B, ...].
      t: current timestep, 1..T.
      s: next timestep, 0..t-1.
      noise: [B, ...] standard normal.

    Returns:
      x_s [B, ...]; the predicted x0 if s = 0.
    """
    mean, std = posterior(schedule, prediction.x0, x_t, t, s)
    return mean + std * noise


def ddim_step(
    schedule: Schedule, prediction: Prediction, x_t: Array, t: Array, s: Array, noise: Array
) -> Array:
    """Deterministic step x_s = alpha_s x0 + sigma_s eps (Song et al. 2021, eq. 12, eta = 0).

    Args:
      schedule: tables of length T+1.
      prediction: at (x_t, t), or the one expected in the middle of the step.
      x_t: [B, ...]; enters only through the prediction.
      t: current timestep; enters only through the prediction.
      s: next timestep, 0..t-1.
      noise: unused.

    Returns:
      x_s [B, ...]; the predicted x0 if s = 0.
    """
    del t, noise
    alpha_s, sigma_s = coefficients(schedule, s, x_t)
    return alpha_s * prediction.x0 + sigma_s * prediction.eps


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(ddim_step, second_order=False),
    "ddpm": Sampler(ddpm_step, second_order=False),
    "dpmpp": Sampler(ddim_step, second_order=True),
    "dpmpp_sde": Sampler(ddpm_step, second_order=True),
}


def midpoint_weights(schedule: Schedule, trajectory: np.ndarray) -> Array:
    """w = h / (2 h_prev) of every step, [N] float32; 0 in the first and the last (Lu et al. 2022).

    Args:
      schedule: tables of length T+1.
      trajectory: [N+1] timesteps, strictly falling from T to 0.
    """
    # The last point, t = 0, is left out: l is infinite there. At t = T it may be -infinite.
    alpha, sigma = (jnp.asarray(row)[trajectory[:-1]] for row in (schedule.alpha, schedule.sigma))
    h = jnp.diff(jnp.log(alpha) - jnp.log(sigma))
    return jnp.zeros(len(alpha)).at[1:-1].set(h[1:] / (2 * h[:-1]))


def gaussian_like(keys: Array, x: Array) -> Array:
    """Standard normal noise of the shape and dtype of x [B, ...], one typed key per case, [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def sample(
    denoise: DenoiseFn,
    schedule: Schedule,
    trajectory: np.ndarray,
    x_T: Array,  # noqa: N803
    keys: Array,
    sampler: Sampler,
) -> Array:
    """The sample x_0 [B, ...] at the end of `sample_path`, with the same arguments.

    Under `jax.jit` the states on the way, which nobody asks for, are never stored.
    """
    x_0, _ = sample_path(denoise, schedule, trajectory, x_T, keys, sampler)
    return x_0


def sample_path(
    denoise: DenoiseFn,
    schedule: Schedule,
    trajectory: np.ndarray,
    x_T: Array,  # noqa: N803
    keys: Array,
    sampler: Sampler,
) -> tuple[Array, tuple[Array, Array]]:
    """Runs the whole trajectory in one forward scan.

    Args:
      denoise: (x_t [B, ...], t scalar int32) -> Prediction.
      schedule: tables of length T+1.
      trajectory: [N+1] int32 timesteps, strictly falling from T to 0.
      x_T: [B, ...] starting noise.
      keys: [B] typed keys, one per case (and ensemble member).
      sampler: one of SAMPLERS.

    Returns:
      x_0 [B, ...], the x0 of the last prediction; and of every step x_t and its predicted x0,
      [N, B, ...] each.
    """

    def step(carry: tuple[Array, Array], scanned: tuple[Array, ...]) -> tuple[tuple, tuple]:
        x_t, previous_x0 = carry
        t, s, weight = scanned
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        noise = gaussian_like(step_keys, x_t)
        prediction = denoise(x_t, t)
        expected = prediction
        if sampler.second_order:
            middle_x0 = prediction.x0 + weight * (prediction.x0 - previous_x0)
            expected = from_x0(schedule, middle_x0, x_t, t)
        x_s = sampler.step(schedule, expected, x_t, t, s, noise)
        return (x_s, prediction.x0), (x_t, prediction.x0)

    path = jnp.asarray(trajectory)
    start = (x_T, jnp.zeros_like(x_T))
    scanned = (path[:-1], path[1:], midpoint_weights(schedule, path))
    (x_0, _), along = jax.lax.scan(step, start, scanned)
    return x_0, along
