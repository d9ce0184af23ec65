"""The UNet backbone, in two halves so that conditions can enter between them.

An encoder of L levels halves the resolution L - 1 times; the decoder mirrors it and joins the
encoder's features by concatenation (Ronneberger et al. 2015), with residual blocks in place of
plain convolutions. Without a time embedding the same two halves make the condition model, and on
their own a plain discriminative UNet: the baseline with the same backbone.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from medsegdiff_jax.networks import layers
from medsegdiff_jax.networks.interface import Discriminative
from medsegdiff_jax.types import Array, Condition


class Encoder(nn.Module):
    """Levels of residual blocks, each but the last followed by a strided convolution.

    Attributes:
      widths: channels of each level, full resolution first.
      blocks: residual blocks per level.
      dtype: compute dtype.
      remat: recompute the blocks' activations in the backward pass.
    """

    widths: tuple[int, ...]
    blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Array, embedding: Array | None = None, entering: Sequence[Array] = ()
    ) -> list[Array]:
        """One feature map per level, the deepest last.

        Args:
          x: [B, H, W, widths[0]].
          embedding: [1 or B, E] of the diffusion step, if there is one.
          entering: what is added where each level begins, of that level's shape; () for nothing.
        """
        block = layers.rematted(layers.ResBlock, self.remat)
        features = []
        for level, width in enumerate(self.widths):
            if level:
                x = layers.conv(width, self.dtype, stride=2, name=f"down_{level}")(x)
            if entering:
                x = x + entering[level]
            for index in range(self.blocks):
                name = f"level_{level}_block_{index}"
                x = block(width, self.dtype, name=name)(x, embedding)
            features.append(x)
        return features


class Decoder(nn.Module):
    """Mirror of `Encoder`: from the deepest feature back to full resolution.

    Attributes: as in `Encoder`.
    """

    widths: tuple[int, ...]
    blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, features: list[Array], embedding: Array | None = None) -> Array:
        """features: the encoder's list, deepest last -> [B, H, W, widths[0]], after activation."""
        block = layers.rematted(layers.ResBlock, self.remat)
        x = features[-1]
        x = block(self.widths[-1], self.dtype, name="middle")(x, embedding)
        for level in reversed(range(len(self.widths) - 1)):
            width = self.widths[level]
            # Reducing the channels before the resize saves most of its cost.
            x = layers.upsample(layers.conv(width, self.dtype, kernel=1, name=f"up_{level}")(x))
            x = jnp.concatenate([x, features[level]], axis=-1)
            for index in range(self.blocks):
                name = f"level_{level}_block_{index}"
                x = block(width, self.dtype, name=name)(x, embedding)
        return nn.silu(layers.group_norm(self.widths[0], self.dtype, name="norm")(x))


class UNet(nn.Module):
    """A UNet on the image alone: the condition model, and the plain discriminative baseline.

    Attributes:
      mask_channels: K.
      widths, blocks, dtype, remat: as in `Encoder`.
    """

    mask_channels: int
    widths: tuple[int, ...]
    blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, image: Array) -> tuple[Array, Array, Array]:
        """image: [B, H, W, C] -> last decoder feature, deepest feature, logits [B, H, W, K]."""
        options = (self.widths, self.blocks, self.dtype, self.remat)
        x = layers.conv(self.widths[0], self.dtype, name="stem")(image.astype(self.dtype))
        features = Encoder(*options, name="encoder")(x)
        last = Decoder(*options, name="decoder")(features)
        logits = layers.conv(self.mask_channels, jnp.float32, kernel=1, name="head")(last)
        return last, features[-1], logits


class PlainUNet(Discriminative):
    """The baseline without diffusion: the condition model of the same config, alone.

    Attributes:
      condition_widths, condition_blocks, dtype, remat: as in `UNet`.
    """

    condition_widths: tuple[int, ...]
    condition_blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        """Holds the backbone under the same name as `MedSegDiffV2`."""
        self.condition_model = UNet(
            self.mask_channels, self.condition_widths, self.condition_blocks, self.dtype, self.remat
        )

    def encode(self, image: Array) -> Condition:
        """image: [B, H, W, C] -> Condition whose logits are the answer."""
        _, embedding, logits = self.condition_model(image)
        return Condition(anchor=None, embedding=embedding, logits=logits)
