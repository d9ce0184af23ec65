"""TransUNet: a UNet whose deepest feature passes a Vision Transformer (Chen et al. 2021).

"TransUNet: Transformers make strong encoders for medical image segmentation", arXiv 2102.04306.

The published encoder is the first three stages of a ResNet-50 with ViT-B/16, pretrained on
ImageNet; ours is the condition UNet's encoder, from random weights, so that baselines differ from
`unet` in the transformer alone.
"""

import jax.numpy as jnp

from medsegdiff_jax.networks import layers
from medsegdiff_jax.networks.interface import Discriminative
from medsegdiff_jax.networks.transformer import VisionTransformer
from medsegdiff_jax.networks.unet import Decoder, Encoder
from medsegdiff_jax.types import Array, Condition


class TransUNet(Discriminative):
    """Convolutional encoder, Vision Transformer, decoder with skips.

    Attributes:
      condition_widths, condition_blocks, dtype, remat: as in `unet.UNet`.
      semantic_features, semantic_blocks, semantic_patch: token width, blocks and patch side of the
        transformer.
    """

    condition_widths: tuple[int, ...]
    condition_blocks: int
    semantic_features: int
    semantic_blocks: int
    semantic_patch: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def setup(self):
        """Declares the parts in the order of the data."""
        options = (self.condition_widths, self.condition_blocks, self.dtype, self.remat)
        self.stem = layers.conv(self.condition_widths[0], self.dtype)
        self.encoder = Encoder(*options)
        self.transformer = VisionTransformer(
            self.semantic_features,
            self.semantic_blocks,
            self.semantic_patch,
            self.dtype,
            self.remat,
        )
        self.decoder = Decoder(*options)
        self.head = layers.conv(self.mask_channels, jnp.float32, kernel=1)

    def encode(self, image: Array) -> Condition:
        """image: [B, H, W, C] -> Condition whose logits are the answer."""
        features = self.encoder(self.stem(image.astype(self.dtype)))
        features[-1] = self.transformer(features[-1])
        logits = self.head(self.decoder(features))
        return Condition(anchor=None, embedding=features[-1], logits=logits)
