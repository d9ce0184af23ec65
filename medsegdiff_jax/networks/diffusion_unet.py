"""The UNet that denoises where the image enters before or with its first convolution.

Backbone of the comparison models EnsDiff and SegDiff: our encoder and decoder, which see the step,
with self-attention at the deepest level, as the published ones have it at 16 x 16.
"""

import flax.linen as nn
import jax.numpy as jnp

from medsegdiff_jax.networks import layers
from medsegdiff_jax.networks.transformer import MapAttention
from medsegdiff_jax.networks.unet import Decoder, Encoder
from medsegdiff_jax.types import Array


class DiffusionUNet(nn.Module):
    """From the first convolution's features to the network output.

    Attributes:
      mask_channels: K.
      widths, blocks, dtype, remat: as in `unet.Encoder`.
    """

    mask_channels: int
    widths: tuple[int, ...]
    blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        """x: [B, H, W, widths[0]], t: scalar or [B] in 1..T -> [B, H, W, K] float32."""
        options = (self.widths, self.blocks, self.dtype, self.remat)
        embedding = layers.TimeEmbedding(4 * self.widths[0], name="time_embedding")(t)
        features = Encoder(*options, name="encoder")(x, embedding)
        features[-1] = MapAttention(self.dtype, name="attention")(features[-1])
        last = Decoder(*options, name="decoder")(features, embedding).astype(jnp.float32)
        zeros = nn.initializers.zeros
        return layers.conv(self.mask_channels, jnp.float32, kernel_init=zeros, name="head")(last)
