"""The diffusion process on masks: forward noising, network parametrisations, posterior, ranges.

*Range.* A mask m in {0, 1} becomes x_0 = s (2 m - 1) in {-s, +s}, s = `input_scale`. At s = 1 and
256 x 256 pixels a blur of x_t alone still shows the mask at most steps, so a network can ignore the
image; a smaller s lowers the signal-to-noise ratio s^2 alpha_t^2 / sigma_t^2 at every step without
a new schedule (Chen 2023, "On the importance of noise scheduling for diffusion models", section
2.2). The network then sees x_t / sqrt(alpha_t^2 s^2 + sigma_t^2), which has unit second moment.

*Forward.* x_t = alpha_t x_0 + sigma_t eps (Ho et al. 2020, eq. 4).

*Parametrisations.* The network output is read as one of

    eps: eps;  x_0 = (x_t - sigma_t eps) / alpha_t                     (Ho et al. 2020, eq. 15)
    v:   v = alpha_t eps - sigma_t x_0;  x_0 = alpha_t x_t - sigma_t v
                                       (Salimans and Ho 2022, "Progressive distillation", app. D)
    x0:  logits of the mask; with p = sigmoid (independent channels) or softmax (one-hot channels),
         x_0 = s (2 p - 1), the posterior mean of x_0 when p is the posterior probability.

eps and v give any real x_0; it is clipped to [-s, s], where all masks lie. Whatever the source of
x_0, eps is then recomputed as (x_t - alpha_t x_0) / sigma_t, so that the two faces of a Prediction
always agree with x_t. eps is useless where alpha_t = 0 (the output says nothing about x_0), hence
eps-prediction with zero terminal SNR is refused.

*Posterior.* Let s < t (here a timestep) and a = alpha_t / alpha_s. Then
x_t = a x_s + sqrt(sigma_t^2 - a^2 sigma_s^2) eps' with new noise, and x_s ~ N(alpha_s x_0,
sigma_s^2). The product of the two Gaussians in x_s is Gaussian with

    v_ts = sigma_t^2 - a^2 sigma_s^2
    mean = (a sigma_s^2 / sigma_t^2) x_t + (alpha_s v_ts / sigma_t^2) x_0
    var  = v_ts sigma_s^2 / sigma_t^2

For s = t - 1, a^2 = 1 - beta_t and v_ts = beta_t: Ho et al. 2020, eq. 6 and 7. For s = 0 the mean
is x_0 and the variance 0. The form v_ts = sigma_t^2 - ... (not 1 - a^2) keeps digits at small t.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from medsegdiff_jax import schedules
from medsegdiff_jax.schedules import Schedule
from medsegdiff_jax.types import Array, InputError, Prediction, check_one_of

PREDICTIONS = ("x0", "eps", "v")


def coefficients(schedule: Schedule, t: Array | int, x: Array) -> tuple[Array, Array]:
    """alpha_t and sigma_t, shaped to multiply x.

    Args:
      schedule: tables of length T+1.
      t: timestep in 0..T, scalar or [B] integers.
      x: [B, ...], only its rank is used.

    Returns:
      Two float32 arrays: scalars for a scalar t, else [B, 1, ..., 1].
    """
    t = jnp.asarray(t)
    shape = t.shape + (1,) * (x.ndim - 1 if t.ndim else 0)
    alpha = jnp.asarray(schedule.alpha)[t].reshape(shape)
    sigma = jnp.asarray(schedule.sigma)[t].reshape(shape)
    return alpha, sigma


def from_x0(schedule: Schedule, x_0: Array, x_t: Array, t: Array | int) -> Prediction:
    """The prediction that says x_0 and what noise it leaves in x_t.

    Args:
      schedule: tables of length T+1.
      x_0: [B, ...] estimate of the clean sample.
      x_t: [B, ...] sample at t.
      t: timestep in 1..T, scalar or [B].
    """
    alpha, sigma = coefficients(schedule, t, x_t)
    return Prediction(x0=x_0, eps=(x_t - alpha * x_0) / sigma)


def posterior(
    schedule: Schedule, x_0: Array, x_t: Array, t: Array | int, s: Array | int
) -> tuple[Array, Array]:
    """Mean and standard deviation of q(x_s | x_t, x_0), s < t (Ho et al. 2020, eq. 7 if s = t-1).

    Args:
      schedule: tables of length T+1.
      x_0: [B, ...] clean sample.
      x_t: [B, ...] sample at t.
      t: timestep in 1..T, scalar or [B].
      s: earlier timestep in 0..t-1, same shape as t.

    Returns:
      mean [B, ...] and standard deviation (scalar or [B, 1, ..., 1]); at s = 0 exactly x_0 and 0.
    """
    alpha_t, sigma_t = coefficients(schedule, t, x_t)
    alpha_s, sigma_s = coefficients(schedule, s, x_t)
    a = alpha_t / alpha_s
    step_variance = jnp.maximum(sigma_t**2 - (a * sigma_s) ** 2, 0.0)
    variance_t = sigma_t**2
    mean = (a * sigma_s**2 / variance_t) * x_t + (alpha_s * (step_variance / variance_t)) * x_0
    return mean, jnp.sqrt(step_variance) * (sigma_s / sigma_t)


@flax.struct.dataclass
class Process:
    """A schedule with the meaning of the network's input and output.

    Attributes:
      schedule: alpha and sigma tables.
      input_scale: s > 0; masks live at -s and +s.
      prediction: what the network output is: "x0" (logits), "eps" or "v".
      one_hot: True if the K channels are exclusive (softmax over them), see Task.one_hot.
    """

    schedule: Schedule
    input_scale: float = flax.struct.field(pytree_node=False)
    prediction: str = flax.struct.field(pytree_node=False)
    one_hot: bool = flax.struct.field(pytree_node=False)

    def mask_to_x0(self, mask: Array) -> Array:
        """Mask (or probability) in [0, 1] -> float32 x_0 in [-s, s], same shape."""
        return self.input_scale * (2.0 * jnp.asarray(mask, jnp.float32) - 1.0)

    def x0_to_mask(self, x_0: Array) -> Array:
        """x_0 [..., K] -> probability in [0, 1], same shape; inverse of `mask_to_x0`.

        One-hot channels sum to 1: from eps or v each is found by itself, and they need not agree.
        Where all deny, none is more probable than another.
        """
        mask = jnp.clip((x_0 / self.input_scale + 1.0) / 2.0, 0.0, 1.0)
        if not self.one_hot:
            return mask
        total = jnp.sum(mask, axis=-1, keepdims=True)
        return jnp.where(total > 0, mask / jnp.where(total > 0, total, 1), 1 / mask.shape[-1])

    def logits_to_mask(self, logits: Array) -> Array:
        """Logits [..., K] -> probabilities: softmax over one-hot channels, else sigmoid of each."""
        return jax.nn.softmax(logits) if self.one_hot else jax.nn.sigmoid(logits)

    def corrupt(self, x_0: Array, eps: Array, t: Array | int) -> Array:
        """x_t = alpha_t x_0 + sigma_t eps (Ho et al. 2020, eq. 4).

        Args:
          x_0: [B, H, W, K] in [-s, s].
          eps: [B, H, W, K] standard normal noise.
          t: timestep in 0..T, scalar or [B].

        Returns:
          x_t [B, H, W, K].
        """
        alpha, sigma = coefficients(self.schedule, t, x_0)
        return alpha * x_0 + sigma * eps

    def network_input(self, x_t: Array, t: Array | int) -> Array:
        """x_t [B, H, W, K] scaled to unit second moment, whatever t (scalar or [B]) and s."""
        alpha, sigma = coefficients(self.schedule, t, x_t)
        return x_t / jnp.sqrt((alpha * self.input_scale) ** 2 + sigma**2)

    def predict(self, output: Array, x_t: Array, t: Array | int) -> Prediction:
        """Reads the network output as x_0 and eps, both float32 and consistent with x_t.

        Args:
          output: [B, H, W, K] in the parametrisation `prediction`; any float dtype.
          x_t: [B, H, W, K] float32, unscaled.
          t: timestep in 1..T (at t = 0 there is no noise to predict), scalar or [B].

        Returns:
          Prediction with x0 in [-s, s].
        """
        output = jnp.asarray(output, jnp.float32)
        alpha, sigma = coefficients(self.schedule, t, x_t)
        scale = self.input_scale
        if self.prediction == "x0":
            x_0 = self.mask_to_x0(self.logits_to_mask(output))
        elif self.prediction == "eps":
            x_0 = jnp.clip((x_t - sigma * output) / alpha, -scale, scale)
        else:
            x_0 = jnp.clip(alpha * x_t - sigma * output, -scale, scale)
        return from_x0(self.schedule, x_0, x_t, t)

    def target(self, x_0: Array, eps: Array, t: Array | int) -> Array:
        """What the output of an "eps" or "v" network is regressed on, [B, H, W, K].

        Raises:
          ValueError: prediction is "x0"; its output are logits, compared with the mask itself.
        """
        if self.prediction == "x0":
            raise ValueError("x0-prediction has no regression target: its output are mask logits")
        if self.prediction == "eps":
            return eps
        alpha, sigma = coefficients(self.schedule, t, x_0)
        return alpha * eps - sigma * x_0


def build(config: Any, one_hot: bool) -> Process:
    """Process from the `diffusion` part of a config.

    Args:
      config: has num_timesteps, schedule, zero_terminal_snr, input_scale, prediction.
      one_hot: see `Task.one_hot`.

    Raises:
      InputError: an unknown or impossible value; the message names the field.
    """
    check_one_of("config field diffusion.prediction", config.prediction, PREDICTIONS)
    if config.prediction == "eps" and config.zero_terminal_snr:
        raise InputError(
            "config field diffusion.zero_terminal_snr: must be False with "
            "diffusion.prediction='eps' (x_0 cannot be computed from eps where alpha is 0)"
        )
    if not config.input_scale > 0:
        raise InputError(
            f"config field diffusion.input_scale: {config.input_scale} is not positive"
        )
    return Process(
        schedule=schedules.build(
            config.schedule, config.num_timesteps, bool(config.zero_terminal_snr)
        ),
        input_scale=float(config.input_scale),
        prediction=config.prediction,
        one_hot=one_hot,
    )
