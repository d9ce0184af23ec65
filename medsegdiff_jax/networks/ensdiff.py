"""EnsDiff: the image as further channels of the noisy mask (Wolleb et al. 2021).

"Diffusion models for implicit image segmentation ensembles", arXiv 2112.03145.

One UNet reads image and noisy mask together, so the whole network runs at every step of every
member, and there is no segmentation without denoising. The published ensemble is the mean of the
samples (`sampling.fusion = "mean"`).
"""

import jax.numpy as jnp

from medsegdiff_jax.networks import layers
from medsegdiff_jax.networks.diffusion_unet import DiffusionUNet
from medsegdiff_jax.networks.interface import Generative
from medsegdiff_jax.types import Array, Condition


class EnsDiff(Generative):
    """One UNet on image and noisy mask.

    Attributes:
      widths, blocks, dtype, remat: as in `unet.Encoder`.
    """

    widths: tuple[int, ...]
    blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        """Declares the first convolution and the UNet behind it."""
        self.stem = layers.conv(self.widths[0], self.dtype)
        self.unet = DiffusionUNet(
            self.mask_channels, self.widths, self.blocks, self.dtype, self.remat
        )

    def encode(self, image: Array) -> Condition:
        """image: [B, H, W, C] -> Condition that only passes it on."""
        return Condition(anchor=None, embedding=image, logits=None)

    def denoise(self, x_t: Array, t: Array, condition: Condition) -> Array:
        """x_t: [B, H, W, K], t: scalar or [B] -> [B, H, W, K] float32."""
        both = jnp.concatenate([condition.embedding, x_t], axis=-1)
        return self.unet(self.stem(both.astype(self.dtype)), t)
