"""Transformer blocks on tokens (Vaswani et al. 2017), and the Vision Transformer bottleneck.

Blocks are pre-norm with an MLP of four times the width and GELU, as in ViT (Dosovitskiy et al.
2021); no dropout. Softmax is float32 whatever the compute dtype.
"""

import flax.linen as nn
import jax.numpy as jnp

from medsegdiff_jax.networks import layers
from medsegdiff_jax.types import Array

HEAD_FEATURES = 64  # channels of an attention head in ViT


def count_heads(features: int, head_features: int) -> int:
    """The most heads of at least `head_features` channels that share `features` evenly; or 1."""
    most = max(1, features // head_features)
    return max(count for count in range(1, most + 1) if features % count == 0)


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    Attributes:
      heads: must divide the width of the tokens.
      dtype: compute dtype.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, bias: Array | None = None) -> Array:
        """tokens: [..., n, D], bias: [..., heads, n, n] on the affinities -> [..., n, D]."""
        width = tokens.shape[-1]
        shape = (3, self.heads, width // self.heads)
        joint = nn.DenseGeneral(shape, dtype=self.dtype, name="query_key_value")(tokens)
        query, key, value = jnp.moveaxis(joint, -3, 0)
        attended = nn.dot_product_attention(
            query, key, value, bias=bias, dtype=self.dtype, force_fp32_for_softmax=True
        )
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="output")(attended)


class TransformerBlock(nn.Module):
    """Self-attention and MLP, both pre-normalised and residual.

    Attributes: as in `SelfAttention`.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: Array, bias: Array | None = None) -> Array:
        """tokens: [..., n, D], bias: [..., heads, n, n] or None -> [..., n, D]."""

        def norm(stream: Array) -> Array:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(stream)

        width = tokens.shape[-1]
        attention = SelfAttention(self.heads, self.dtype, name="attention")
        tokens = tokens + attention(norm(tokens), bias)
        hidden = nn.Dense(4 * width, dtype=self.dtype, name="mlp_in")(norm(tokens))
        return tokens + nn.Dense(width, dtype=self.dtype, name="mlp_out")(nn.gelu(hidden))


class VisionTransformer(nn.Module):
    """Patches of a feature map through plain ViT blocks, and back to a map of the same shape.

    The position of a patch is a learned vector, which ties the network to its image size.

    Attributes:
      features: token width.
      blocks: transformer blocks.
      patch: side of a patch, in cells of the map.
      dtype: compute dtype.
      remat: recompute the blocks' activations in the backward pass.
    """

    features: int
    blocks: int
    patch: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [B, h, w, C], h and w multiples of the patch -> [B, h, w, C]."""
        channels, size = x.shape[-1], (self.patch, self.patch)
        x = nn.Conv(self.features, size, strides=size, dtype=self.dtype, name="patchify")(x)
        batch, rows, columns, _ = x.shape
        tokens = x.reshape(batch, rows * columns, self.features)
        shape = (1, rows * columns, self.features)
        positions = self.param("positions", nn.initializers.normal(0.02), shape)
        tokens = tokens + positions.astype(self.dtype)
        block = layers.rematted(TransformerBlock, self.remat)
        heads = count_heads(self.features, HEAD_FEATURES)
        for index in range(self.blocks):
            tokens = block(heads, self.dtype, name=f"block_{index}")(tokens)
        tokens = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(tokens)
        tokens = nn.Dense(self.patch**2 * channels, dtype=self.dtype, name="unpatchify")(tokens)
        return layers.patches_to_map(tokens, rows, columns, self.patch)


class MapAttention(nn.Module):
    """Residual self-attention between the cells of a feature map (Ho et al. 2020, appendix B).

    Attributes:
      dtype: compute dtype.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [B, h, w, C] -> [B, h, w, C]."""
        batch, height, width, channels = x.shape
        tokens = layers.group_norm(channels, self.dtype)(x)
        tokens = tokens.reshape(batch, height * width, channels)
        heads = count_heads(channels, HEAD_FEATURES)
        attended = SelfAttention(heads, self.dtype, name="attention")(tokens)
        return x + attended.reshape(x.shape)
