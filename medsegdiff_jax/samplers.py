"""Samplers: from noise x_T to a clean sample x_0 along a falling list of timesteps.

A sampler knows a schedule and a function (x_t, t) -> Prediction; it never sees a network. A step
goes from t to any earlier s, so fewer steps than T are a shorter list (`schedules.trajectory`).

*DDPM* (Ho et al. 2020, algorithm 2, on a respaced list): draw x_s from q(x_s | x_t, x_0), the
Gaussian derived in `process`, with the predicted x0 in the place of x_0.

*DDIM* (Song et al. 2021, "Denoising diffusion implicit models", eq. 12 with sigma = 0): keep the
predicted noise and move it to the level of s, x_s = alpha_s x0 + sigma_s eps. No new noise, so the
result is a function of x_T alone. It is the Euler step of the probability-flow ODE in
x_t / alpha_t against sigma_t / alpha_t, yet free of a division by alpha_t, so it also starts from
alpha_T = 0.

In both, the row s = 0 of the schedule is (1, 0): the last step returns the predicted x0 exactly.

*Randomness is an address.* The noise of case b at timestep t comes from fold_in(keys[b], t): it
depends neither on the other cases of the batch nor on the number of devices. Draw x_T from `keys`
themselves (`gaussian_like(keys, x)`): fold_in keeps that stream apart from the steps'.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from medsegdiff_jax.process import coefficients, posterior
from medsegdiff_jax.schedules import Schedule
from medsegdiff_jax.types import Array, DenoiseFn, Prediction

StepFn = Callable[[Schedule, Prediction, Array, Array, Array, Array], Array]
"""(schedule, prediction, x_t, t, s, noise) -> x_s, s < t."""


def ddpm_step(
    schedule: Schedule, prediction: Prediction, x_t: Array, t: Array, s: Array, noise: Array
) -> Array:
    """Ancestral step: x_s ~ q(x_s | x_t, x0) (Ho et al. 2020, eq. 7 and algorithm 2).

    Args:
      schedule: tables of length T+1.
      prediction: at (x_t, t).
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
      prediction: at (x_t, t).
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


SAMPLERS: dict[str, StepFn] = {"ddim": ddim_step, "ddpm": ddpm_step}


def gaussian_like(keys: Array, x: Array) -> Array:
    """Standard normal noise of the shape and dtype of x [B, ...], one typed key per case, [B]."""
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def sample(
    denoise: DenoiseFn,
    schedule: Schedule,
    trajectory: np.ndarray,
    x_T: Array,  # noqa: N803
    keys: Array,
    step_fn: StepFn,
) -> Array:
    """Runs the whole trajectory in one forward scan.

    Args:
      denoise: (x_t [B, ...], t scalar int32) -> Prediction.
      schedule: tables of length T+1.
      trajectory: [N+1] int32 timesteps, strictly falling from T to 0.
      x_T: [B, ...] starting noise.
      keys: [B] typed keys, one per case (and ensemble member).
      step_fn: one of SAMPLERS.

    Returns:
      x_0 [B, ...]: the x0 of the last prediction.
    """

    def step(x_t: Array, scanned: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = scanned
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, t)
        noise = gaussian_like(step_keys, x_t)
        return step_fn(schedule, denoise(x_t, t), x_t, t, s, noise), None

    x_0, _ = jax.lax.scan(step, x_T, (jnp.asarray(trajectory[:-1]), jnp.asarray(trajectory[1:])))
    return x_0
