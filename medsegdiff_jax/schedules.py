"""Noise schedules: how much of the mask and how much noise is in x_t.

A variance-preserving forward process keeps, at every step t = 0..T,

    x_t = alpha_t x_0 + sigma_t eps,   eps ~ N(0, I),   alpha_t^2 + sigma_t^2 = 1

(Ho et al. 2020, "Denoising diffusion probabilistic models", eq. 4, with alpha_t^2 their
alpha-bar_t). One table of alpha and one of sigma say everything; all other quantities (signal to
noise ratio, posterior variance, respaced steps) are derived from two rows of them. Row 0 is the
clean state (1, 0), so the last sampling step needs no special case.

*Linear* (Ho et al. 2020, section 4): the variances beta_1..beta_T added per step grow linearly from
1e-4 to 0.02 at T = 1000, and alpha_t^2 = prod_{i<=t} (1 - beta_i). For another T both ends are
multiplied by 1000 / T, so that the total noise stays about the same.

*Cosine* (Nichol and Dhariwal 2021, "Improved DDPM", eq. 17): alpha_t^2 = f(t) / f(0) with
f(t) = cos^2((t / T + 0.008) / 1.008 * pi / 2).

Both cap beta at 0.999, as Nichol and Dhariwal do: the linear schedule would pass 1 below T = 20 and
the cosine one reaches it at t = T.

*Zero terminal SNR* (Lin et al. 2023, "Common diffusion noise schedules and sample steps are
flawed", algorithm 1): the tables above leave a trace of the mask in x_T (alpha_T = 0.0064 for the
linear one), which training sees and sampling from pure noise does not. Shifting alpha so that its
last value is 0 and scaling it so that alpha_1 stays removes the trace:
alpha_t <- (alpha_t - alpha_T) alpha_1 / (alpha_1 - alpha_T), sigma_t = sqrt(1 - alpha_t^2).

*Trajectory* (same paper, section 3.3, "trailing"): N sampling steps visit round(T (N - i) / N),
i = 0..N; they always begin at T, where x_T really is noise, and end at 0.
"""

import flax.struct
import numpy as np

from medsegdiff_jax.types import Array, InputError, check_at_least, check_one_of

_MAX_BETA = 0.999
_COSINE_OFFSET = 0.008


@flax.struct.dataclass
class Schedule:
    """x_t = alpha[t] x_0 + sigma[t] eps for t = 0..T.

    Attributes:
      alpha: [T+1] float32, strictly falling from 1 (row 0, clean) to about 0 (exactly 0 with zero
        terminal SNR).
      sigma: [T+1] float32, rising from 0 to about 1.
    """

    alpha: np.ndarray | Array
    sigma: np.ndarray | Array

    @property
    def num_steps(self) -> int:
        """T, the number of noising steps."""
        return self.alpha.shape[0] - 1


def linear(num_timesteps: int, *, zero_terminal_snr: bool = False) -> Schedule:
    """Linear-beta schedule of Ho et al. 2020, section 4, rescaled to any T.

    Args:
      num_timesteps: T >= 1; a single beta is the last of them.
      zero_terminal_snr: apply Lin et al. 2023, algorithm 1, so that alpha[T] is exactly 0.

    Raises:
      InputError: T < 1.
    """
    check_at_least("config field diffusion.num_timesteps", num_timesteps)
    scale = 1000.0 / num_timesteps
    first = 1e-4 if num_timesteps > 1 else 0.02
    beta = np.linspace(first * scale, 0.02 * scale, num_timesteps)
    return _from_beta(beta, zero_terminal_snr)


def cosine(num_timesteps: int, *, zero_terminal_snr: bool = False) -> Schedule:
    """Cosine schedule of Nichol and Dhariwal 2021, eq. 17.

    Args:
      num_timesteps: T >= 1.
      zero_terminal_snr: apply Lin et al. 2023, algorithm 1, so that alpha[T] is exactly 0.

    Raises:
      InputError: T < 1.
    """
    check_at_least("config field diffusion.num_timesteps", num_timesteps)
    t = np.arange(num_timesteps + 1) / num_timesteps
    f = np.cos((t + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * np.pi / 2) ** 2
    return _from_beta(1 - f[1:] / f[:-1], zero_terminal_snr)


_KINDS = {"linear": linear, "cosine": cosine}


def build(kind: str, num_timesteps: int, zero_terminal_snr: bool) -> Schedule:
    """Schedule by name: "linear" or "cosine".

    Raises:
      InputError: unknown name (field diffusion.schedule) or T < 1 (diffusion.num_timesteps).
    """
    check_one_of("config field diffusion.schedule", kind, _KINDS)
    return _KINDS[kind](num_timesteps, zero_terminal_snr=zero_terminal_snr)


def trajectory(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Timesteps that N sampling steps visit: [N+1] int32, strictly falling from T to 0.

    Trailing spacing (Lin et al. 2023, section 3.3). Consecutive pairs (t, s) are the arguments of
    the sampler's steps.

    Args:
      num_timesteps: T of the training schedule.
      num_steps: N, 1 <= N <= T.

    Raises:
      InputError: N outside 1..T.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise InputError(f"steps: {num_steps} is not between 1 and {num_timesteps}")
    remaining = np.arange(num_steps, -1, -1, dtype=np.int64)
    # Integer rounding; T / N >= 1 keeps the neighbours apart.
    return ((num_timesteps * remaining + num_steps // 2) // num_steps).astype(np.int32)


def _from_beta(beta: np.ndarray, zero_terminal_snr: bool) -> Schedule:
    """Tables from beta [T] float64; everything in float64, rounded to float32 once at the end."""
    log_alpha_squared = np.cumsum(np.log1p(-np.minimum(beta, _MAX_BETA)))
    alpha = np.exp(log_alpha_squared / 2)
    sigma = np.sqrt(-np.expm1(log_alpha_squared))
    if zero_terminal_snr:
        # With T = 1 the first and the last row coincide and only alpha_T = 0 can hold.
        span = alpha[0] - alpha[-1]
        alpha = (alpha - alpha[-1]) * (alpha[0] / span) if span > 0 else np.zeros_like(alpha)
        sigma = np.sqrt((1 - alpha) * (1 + alpha))
    return Schedule(
        alpha=np.concatenate([[1.0], alpha]).astype(np.float32),
        sigma=np.concatenate([[0.0], sigma]).astype(np.float32),
    )
