"""What the noisy mask says where the condition model is in doubt, at every scale.

A rater draws the border further out or further in along its whole length. x_t shows that in all of
the border's pixels together long before it shows it in any of them, but convolutions on x_t alone
would have to learn where the border is before they could add those pixels up, and the noise of all
the others with them. The condition model knows where: with p its probability, the doubt

    d = 4 p (1 - p)

is 0 where it is sure and 1 where it is not. `Evidence` gives the encoder d, x_t, d x_t and the
matched filter

    sum(d x_t) / sqrt(1 + sum(d^2)),

which is the whole image's answer to "further out or further in?" in units of its own noise. Means
over 2 x 2 pixels carry the maps to the deeper levels; those of x_t and d x_t are doubled at each,
which keeps the noise in x_t at its variance while what neighbours have in common grows.

The probability is used without its gradient: it is a fact about the image, not a way to train the
condition model. Not in the paper; what it does is measured in docs/results.md.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from medsegdiff_jax.networks import layers
from medsegdiff_jax.types import Array


def evidence_maps(x_t: Array, probability: Array) -> tuple[Array, Array]:
    """Noisy and noiseless maps at full resolution.

    Args:
      x_t: [B, H, W, K] noisy mask of unit variance.
      probability: [B, H, W, K] in [0, 1], the condition model's.

    Returns:
      x_t and d x_t, [B, H, W, 2 K]; d and the matched filter, [B, H, W, 2 K].
    """
    doubt = 4 * probability * (1 - probability)
    weighed = doubt * x_t
    total, power = (jnp.sum(one, axis=(1, 2), keepdims=True) for one in (weighed, doubt**2))
    matched = jnp.broadcast_to(total / jnp.sqrt(1 + power), x_t.shape)
    return jnp.concatenate([x_t, weighed], axis=-1), jnp.concatenate([doubt, matched], axis=-1)


class Evidence(nn.Module):
    """The maps of `evidence_maps`, projected to the width of every level of an encoder.

    Attributes:
      widths: channels of the levels, full resolution first.
      dtype: compute dtype.
    """

    widths: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x_t: Array, probability: Array) -> list[Array]:
        """x_t, probability: [B, H, W, K] -> [B, H / 2^l, W / 2^l, widths[l]] for each level l."""
        noisy, known = evidence_maps(x_t, jax.lax.stop_gradient(probability))
        features = []
        for level, width in enumerate(self.widths):
            if level:
                noisy = 2 * nn.avg_pool(noisy, (2, 2), (2, 2))
                known = nn.avg_pool(known, (2, 2), (2, 2))
            maps = jnp.concatenate([noisy, known], axis=-1).astype(self.dtype)
            kernel = 1 if level else 3
            name = f"level_{level}"
            features.append(layers.conv(width, self.dtype, kernel=kernel, name=name)(maps))
        return features
