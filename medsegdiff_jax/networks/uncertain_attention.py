"""Uncertain Spatial Attention, U-SA (Wu et al. 2024, equations 4 and 5).

    f_anc = max(f_c * k_Gauss, f_c)
    f_d'  = sigmoid(conv1x1(f_anc)) . f_d + f_d

f_c is the last decoder feature of the condition model, f_d the first encoder feature of the
diffusion model. Smoothing spreads the anchor beyond the border that the condition model is sure of,
and the maximum keeps what it is sure of.

Where the paper is silent we read: k_Gauss is depthwise; the mean and the width of each channel's
Gaussian are learned (as the first version of the paper states), in pixels; it is normalised to sum
1; f_c is the feature map, not the logits; gradients flow into the condition model. The gate depends
on the image alone, so `SpatialGate` belongs to `encode`, and `denoise` only multiplies.
"""

import flax.linen as nn
import jax.numpy as jnp

from medsegdiff_jax.networks import layers
from medsegdiff_jax.types import Array

ANCHORS = ("none", "spatial_attention", "u_sa")


def gaussian_weights(mean: Array, width: Array, size: int) -> Array:
    """Samples of a Gaussian at the integer offsets of a kernel, normalised to sum 1.

    Args:
      mean, width: [C], in pixels; width > 0.
      size: odd number of taps.

    Returns:
      [size, C].
    """
    offsets = jnp.arange(size, dtype=jnp.float32)[:, None] - size // 2
    return nn.softmax(-0.5 * ((offsets - mean) / width) ** 2, axis=0)


def smooth(features: Array, rows: Array, columns: Array) -> Array:
    """Separable depthwise correlation, zero padded, as a sum of shifted copies.

    XLA's depthwise convolution is 20 to 60 times slower than this on CPU.

    Args:
      features: [B, H, W, C].
      rows, columns: [size, C] taps along H and along W.

    Returns:
      [B, H, W, C].
    """
    size = rows.shape[0]
    height, width = features.shape[1:3]
    reach = size // 2
    padded = jnp.pad(features, ((0, 0), (reach, reach), (0, 0), (0, 0)))
    features = sum(rows[i] * padded[:, i : i + height] for i in range(size))
    padded = jnp.pad(features, ((0, 0), (0, 0), (reach, reach), (0, 0)))
    return sum(columns[i] * padded[:, :, i : i + width] for i in range(size))


class GaussianSmoothing(nn.Module):
    """f * k_Gauss with one learned Gaussian per channel (mean in y and x, one width).

    Attributes:
      size: odd number of taps along each axis.
    """

    size: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """features: [B, H, W, C] -> [B, H, W, C] float32."""
        channels = features.shape[-1]
        mean = self.param("mean", nn.initializers.zeros, (2, channels))
        # softplus(0.5413) = 1: a width of one pixel to begin with.
        width = nn.softplus(self.param("width", nn.initializers.constant(0.5413), (channels,)))
        rows, columns = (gaussian_weights(mean[axis], width, self.size) for axis in (0, 1))
        return smooth(features.astype(jnp.float32), rows, columns)


class SpatialGate(nn.Module):
    """The anchor condition as a gate in (0, 1), one value per pixel.

    Attributes:
      uncertain: U-SA if True; plain spatial attention (no Gaussian, no maximum) if False.
      size: taps of the Gaussian.
    """

    uncertain: bool
    size: int

    @nn.compact
    def __call__(self, feature: Array) -> Array:
        """feature f_c: [B, H, W, F] -> [B, H, W, 1] float32."""
        feature = feature.astype(jnp.float32)
        if self.uncertain:
            smoothed = GaussianSmoothing(self.size, name="gaussian")(feature)
            feature = jnp.maximum(smoothed, feature)
        return nn.sigmoid(layers.conv(1, jnp.float32, kernel=1, name="reduce")(feature))
