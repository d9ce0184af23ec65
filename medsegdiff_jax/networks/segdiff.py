"""SegDiff: features of image and noisy mask are summed (Amit et al. 2021).

"SegDiff: Image segmentation with diffusion probabilistic models", arXiv 2112.00390.

    output = UNet(F(x_t) + G(image), t)

F is the first convolution of the UNet. G is a chain of residual-in-residual dense blocks (RRDB,
Wang et al. 2018, ESRGAN) at full resolution; it sees the image alone, so it runs once per image, in
`encode`. There is no segmentation without denoising.
"""

import flax.linen as nn
import jax.numpy as jnp

from medsegdiff_jax.networks import layers
from medsegdiff_jax.networks.diffusion_unet import DiffusionUNet
from medsegdiff_jax.networks.interface import Generative
from medsegdiff_jax.types import Array, Condition

_DENSE_CONVOLUTIONS = 4  # before the one that joins them
_DENSE_BLOCKS = 3  # of an RRDB
_RESIDUAL_SCALE = 0.2


def _leaky(x: Array) -> Array:
    return nn.leaky_relu(x, 0.2)


class DenseBlock(nn.Module):
    """Convolutions that each see all features so far, joined and added, scaled, to the input.

    Half the width of the input is what each convolution adds. No normalisation.

    Attributes:
      dtype: compute dtype.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [B, h, w, C] -> [B, h, w, C]."""
        width, features = x.shape[-1], x
        for _ in range(_DENSE_CONVOLUTIONS):
            grown = _leaky(layers.conv(width // 2, self.dtype)(features))
            features = jnp.concatenate([features, grown], axis=-1)
        return x + _RESIDUAL_SCALE * layers.conv(width, self.dtype)(features)


class RRDB(nn.Module):
    """Three dense blocks, added, scaled, to their input.

    Attributes:
      dtype: compute dtype.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [B, h, w, C] -> [B, h, w, C]."""
        refined = x
        for _ in range(_DENSE_BLOCKS):
            refined = DenseBlock(self.dtype)(refined)
        return x + _RESIDUAL_SCALE * refined


class ImageEncoder(nn.Module):
    """G: a convolution, RRDBs, and a convolution whose result is added to that of the first.

    Attributes:
      features: width.
      blocks: RRDBs.
      dtype, remat: as in `unet.Encoder`.
    """

    features: int
    blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """image: [B, H, W, C] -> [B, H, W, features]."""
        block = layers.rematted(RRDB, self.remat)
        first = layers.conv(self.features, self.dtype, name="stem")(image.astype(self.dtype))
        x = first
        for index in range(self.blocks):
            x = block(self.dtype, name=f"rrdb_{index}")(x)
        x = first + layers.conv(self.features, self.dtype, name="trunk")(x)
        return layers.conv(self.features, self.dtype, name="last")(_leaky(x))


class SegDiff(Generative):
    """UNet(F(x_t) + G(image), t).

    Attributes:
      condition_blocks: RRDBs of G.
      widths, blocks, dtype, remat: as in `unet.Encoder`.
    """

    condition_blocks: int
    widths: tuple[int, ...]
    blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        """Declares G, F and the UNet behind them."""
        self.image_encoder = ImageEncoder(
            self.widths[0], self.condition_blocks, self.dtype, self.remat
        )
        self.stem = layers.conv(self.widths[0], self.dtype)
        self.unet = DiffusionUNet(
            self.mask_channels, self.widths, self.blocks, self.dtype, self.remat
        )

    def encode(self, image: Array) -> Condition:
        """image: [B, H, W, C] -> Condition with embedding G(image) [B, H, W, widths[0]]."""
        return Condition(anchor=None, embedding=self.image_encoder(image), logits=None)

    def denoise(self, x_t: Array, t: Array, condition: Condition) -> Array:
        """x_t: [B, H, W, K], t: scalar or [B] -> [B, H, W, K] float32."""
        return self.unet(self.stem(x_t.astype(self.dtype)) + condition.embedding, t)
