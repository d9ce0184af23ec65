"""MedSegDiff, the first version: dynamic conditional encoding and the FF-Parser (Wu et al. 2022).

"MedSegDiff: Medical image segmentation with diffusion probabilistic model", arXiv 2211.00611.

Two encoders of the same widths read the image and the noisy mask. In the middle levels k the
image's feature m_I is fused with the mask's feature m_x,

    A(m_I, m_x) = LN(m_I) . LN(m_x) . m_I      (elementwise),

and the result goes on down the image's encoder. Before that, the FF-Parser takes the noise of high
frequencies out of m_x: 2-D DFT over space, product with a learned complex map, inverse DFT. The
decoder reads the sum of both encoders' features and sees the step.

*What this costs.* From the first fusion on the image's encoder depends on x_t: it has to run at
every step of every member, and the network has no segmentation of the image alone. Only what lies
before the first fusion, the first two levels, can be computed once per image: that is `encode`.
The learned maps have the shape of the feature maps and so tie a model to its image size.

Where the paper is silent we read: the middle levels are all but the first and the last (two of
four; of two levels, the second); LN is over channels; features are summed at every level, as a UNet
decoder takes them; the step enters mask encoder and decoder, not the image's encoder. A real
feature has a symmetric spectrum, of which rfft2 keeps one half: the map is complex on that half
plane, starts at one (FF-Parser = identity), and the result is real for any map.

`MedSegDiffTransUNet` has plain Vision Transformer blocks on the deepest sum, as TransUNet.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from medsegdiff_jax.networks import layers
from medsegdiff_jax.networks.interface import Generative
from medsegdiff_jax.networks.spectral import filter_spectrum
from medsegdiff_jax.networks.transformer import VisionTransformer
from medsegdiff_jax.networks.unet import Decoder, Encoder
from medsegdiff_jax.types import Array, Condition, InputError


def _ones(key: Array, shape: tuple[int, ...]) -> Array:
    """Complex ones as (real, imaginary) pairs along the last axis."""
    del key
    return jnp.zeros(shape).at[..., 0].set(1.0)


class FFParser(nn.Module):
    """Feature Frequency Parser: a learned complex gain per channel and spatial frequency.

    The map is stored as real pairs [C, h, w // 2 + 1, 2]; transform and product are float32.
    """

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """features: [B, h, w, C] -> the same shape and dtype."""
        _, height, width, channels = features.shape
        pairs = self.param("map", _ones, (channels, height, width // 2 + 1, 2))
        gain = jax.lax.complex(pairs[..., 0], pairs[..., 1])[None]
        parsed = filter_spectrum(features.transpose(0, 3, 1, 2), gain)
        return parsed.transpose(0, 2, 3, 1).astype(features.dtype)


class AttentiveFusion(nn.Module):
    """A(m_I, FF-Parser(m_x)).

    Attributes:
      dtype: compute dtype.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, of_image: Array, of_mask: Array) -> Array:
        """m_I and m_x, both [B, h, w, C] -> [B, h, w, C]."""

        def norm(features: Array, name: str) -> Array:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(features)

        parsed = FFParser(name="ff_parser")(of_mask)
        return norm(of_image, "norm_image") * norm(parsed, "norm_mask") * of_image


class ImageLevel(nn.Module):
    """One level of the image's encoder: a convolution (strided below full size), then blocks.

    Attributes:
      width: channels.
      stride: of the convolution, 1 or 2.
      blocks, dtype, remat: as in `unet.Encoder`.
    """

    width: int
    stride: int
    blocks: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [B, h, w, C] -> [B, h / stride, w / stride, width]."""
        x = layers.conv(self.width, self.dtype, stride=self.stride, name="enter")(x)
        block = layers.rematted(layers.ResBlock, self.remat)
        for index in range(self.blocks):
            x = block(self.width, self.dtype, name=f"block_{index}")(x)
        return x


class MedSegDiffV1(Generative):
    """Both encoders, the fusions between them, and the decoder of their sum.

    Attributes:
      widths, blocks: levels of each encoder and of the decoder; at least two levels.
      dtype: compute dtype; parameters, norms' statistics, FFT and outputs are float32.
      remat: recompute residual blocks' activations in the backward pass.
    """

    widths: tuple[int, ...]
    blocks: int
    dtype: jnp.dtype
    remat: bool

    def __post_init__(self):
        """Raises InputError for less than two levels."""
        super().__post_init__()
        if len(self.widths) < 2:
            raise InputError("config field model.widths: this network needs at least two levels")

    def setup(self):
        """Declares the image's levels, which `encode` and `denoise` share out, and the rest."""
        options = (self.widths, self.blocks, self.dtype, self.remat)
        self.image_levels = [
            ImageLevel(width, 2 if level else 1, self.blocks, self.dtype, self.remat)
            for level, width in enumerate(self.widths)
        ]
        middle = max(1, len(self.widths) - 2)
        self.fusions = [AttentiveFusion(self.dtype) for _ in range(middle)]
        self.time_embedding = layers.TimeEmbedding(4 * self.widths[0])
        self.stem = layers.conv(self.widths[0], self.dtype)
        self.encoder = Encoder(*options)
        self.decoder = Decoder(*options)
        self.head = layers.conv(self.mask_channels, jnp.float32, kernel_init=nn.initializers.zeros)

    def encode(self, image: Array) -> Condition:
        """image: [B, H, W, C] -> Condition with the first two levels' features as embedding."""
        first = self.image_levels[0](image.astype(self.dtype))
        second = self.image_levels[1](first)
        return Condition(anchor=None, embedding=(first, second), logits=None)

    def denoise(self, x_t: Array, t: Array, condition: Condition) -> Array:
        """x_t: [B, H, W, K], t: scalar or [B] -> [B, H, W, K] float32."""
        embedding = self.time_embedding(t)
        features = self.encoder(self.stem(x_t.astype(self.dtype)), embedding)
        first, of_image = condition.embedding
        joined = [features[0] + first]
        for level in range(1, len(features)):
            if level > 1:
                of_image = self.image_levels[level](of_image)
            if level <= len(self.fusions):
                of_image = self.fusions[level - 1](of_image, features[level])
            joined.append(features[level] + of_image)
        joined[-1] = self.refine(joined[-1])
        return self.head(self.decoder(joined, embedding).astype(jnp.float32))

    def refine(self, deepest: Array) -> Array:
        """What happens to the deepest sum [B, h, w, D] before the decoder: here nothing."""
        return deepest


class MedSegDiffTransUNet(MedSegDiffV1):
    """The same with Vision Transformer blocks on the deepest sum.

    Attributes:
      semantic_features, semantic_blocks, semantic_patch: token width, blocks and patch side of the
        transformer.
    """

    semantic_features: int
    semantic_blocks: int
    semantic_patch: int

    def setup(self):
        """Declares the transformer beside the rest."""
        super().setup()
        self.transformer = VisionTransformer(
            self.semantic_features,
            self.semantic_blocks,
            self.semantic_patch,
            self.dtype,
            self.remat,
        )

    def refine(self, deepest: Array) -> Array:
        """The deepest sum [B, h, w, D] through the transformer, same shape."""
        return self.transformer(deepest)
