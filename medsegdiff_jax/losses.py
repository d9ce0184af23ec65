"""Training loss, per example.

The paper (Wu et al. 2024, equation 3) trains

    L = L_n + [t mod alpha = 0] (L_dice + beta L_ce),    alpha = 5, beta = 10,

L_n the error of the predicted noise, the bracket on the condition model's own segmentation. We read
the gate as per example. With alpha = 1 the condition model is supervised at every step. Networks
whose condition is no segmentation are trained by L_n alone.

L_n follows the parametrisation: the mean squared error of eps or v; for x0-prediction, whose output
are logits of the mask, Dice + cross-entropy against the mask. Cross-entropy, like the squared
error, is least at the posterior mean, so a network trained by it alone is a denoiser in the usual
sense. Dice is not: it pulls a pixel away from one half, towards what helps the overlap, so that
probabilities are sharper than they should be (`temperature` fits that) and samples tidier.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medsegdiff_jax.process import Process
from medsegdiff_jax.types import Array, Condition, check_at_least

_SMOOTH = 1.0  # pixels; keeps Dice defined on empty masks


def soft_dice(logits: Array, mask: Array, one_hot: bool) -> Array:
    """1 - Dice of probabilities and mask, mean over foreground channels.

    With sums of p and of the mask in the denominator, as in Drozdzal et al. 2016, "The importance
    of skip connections in biomedical image segmentation"; V-Net (Milletari et al. 2016) squares
    them.

    Args:
      logits: [B, H, W, K].
      mask: [B, H, W, K] in {0, 1}, or in [0, 1] where it is a mean of raters.
      one_hot: channels are exclusive, channel 0 is background and left out.

    Returns:
      [B] in [0, 1].
    """
    if one_hot:
        probability, mask = jax.nn.softmax(logits)[..., 1:], mask[..., 1:]
    else:
        probability = jax.nn.sigmoid(logits)
    overlap = jnp.sum(probability * mask, axis=(1, 2))
    total = jnp.sum(probability, axis=(1, 2)) + jnp.sum(mask, axis=(1, 2))
    return jnp.mean(1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH), axis=-1)


def cross_entropy(logits: Array, mask: Array, one_hot: bool) -> Array:
    """Mean over pixels (and independent channels) of the cross-entropy in nats.

    Args: as in `soft_dice`.

    Returns:
      [B], at least 0.
    """
    if one_hot:
        per_pixel = optax.softmax_cross_entropy(logits, mask)
        return jnp.mean(per_pixel, axis=(1, 2))
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, mask), axis=(1, 2, 3))


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss with its two constants.

    Attributes:
      condition_every: alpha; the condition model is supervised where t mod alpha = 0.
      condition_ce_weight: beta; weight of its cross-entropy.
    """

    condition_every: int
    condition_ce_weight: float

    def __post_init__(self):
        """Raises InputError for constants that make no sense."""
        check_at_least("config field loss.condition_every", self.condition_every)
        check_at_least("config field loss.condition_ce_weight", self.condition_ce_weight, 0)

    def __call__(
        self,
        process: Process,
        output: Array | None,
        condition: Condition,
        mask: Array,
        eps: Array,
        t: Array,
    ) -> dict[str, Array]:
        """Loss terms of a batch.

        Args:
          process: says what `output` means.
          output: [B, H, W, K] float32 of the diffusion network; None if the model has none.
          condition: its logits are supervised, if it has any.
          mask: [B, H, W, K] in {0, 1}, or in [0, 1] where it is a mean of raters.
          eps: [B, H, W, K] noise that was added.
          t: [B] diffusion steps.

        Returns:
          {"total", "condition_dice", "condition_ce", ...}, each [B] float32; only "total" is
          minimised.
        """
        one_hot, terms, on_condition = process.one_hot, {}, 0.0
        if condition.logits is not None:
            dice = terms["condition_dice"] = soft_dice(condition.logits, mask, one_hot)
            ce = terms["condition_ce"] = cross_entropy(condition.logits, mask, one_hot)
            on_condition = dice + self.condition_ce_weight * ce
        if output is None:
            return {"total": on_condition, **terms}
        if process.prediction == "x0":
            terms["denoising_dice"] = soft_dice(output, mask, one_hot)
            terms["denoising_ce"] = cross_entropy(output, mask, one_hot)
            denoising = terms["denoising_dice"] + terms["denoising_ce"]
        else:
            target = process.target(process.mask_to_x0(mask), eps, t)
            denoising = jnp.mean(jnp.square(output - target), axis=(1, 2, 3))
            terms["denoising_mse"] = denoising
        gate = (t % self.condition_every == 0).astype(jnp.float32)
        return {"total": denoising + gate * on_condition, **terms}


def build(loss: Any) -> Objective:
    """Objective from config.loss.

    Raises:
      InputError: a constant that makes no sense.
    """
    return Objective(loss.condition_every, loss.condition_ce_weight)
