"""Swin UNETR in two dimensions: a Swin transformer encoder and a convolutional decoder.

Hatamizadeh et al. 2022 ("Swin UNETR", arXiv 2201.01266) in 2-D, on Liu et al. 2021 ("Swin
Transformer", arXiv 2103.14030). Attention stays within windows of the token map; every second
block moves the windows by half their side. The move is a cyclic one (Liu et al., section 3.2): rows
and columns that come round from the other border share a window with their new neighbours, but a
mask keeps them from attending to each other.

Sides that windows do not divide are padded, and nothing attends to the padding; a map smaller than
a window is one window and is not shifted. The position enters as a learned bias for each relative
offset of two tokens in a window.

Levels: 0 is convolutions at full resolution; 1 the embedding of 2 x 2 pixels; each further level
`condition_blocks` pairs of transformer blocks (one plain, one shifted) on the level above, and the
merging of 2 x 2 tokens to one.
"""

import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from medsegdiff_jax.networks import layers, transformer
from medsegdiff_jax.networks.interface import Discriminative
from medsegdiff_jax.networks.unet import Decoder
from medsegdiff_jax.types import Array, Condition, InputError

HEAD_FEATURES = 16  # channels of an attention head; 48 in 3 heads in the paper
_MASKED = -1e9  # affinity of tokens that may not attend to each other; finite in bfloat16


def to_windows(x: Array, window: int) -> Array:
    """[B, h, w, C], sides multiples of the window -> [B, windows, window^2, C]."""
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x.reshape(batch, rows, window, columns, window, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * columns, window**2, channels)


def from_windows(tokens: Array, height: int, width: int) -> Array:
    """Inverse of `to_windows`: [B, windows, window^2, C] -> [B, height, width, C]."""
    window = math.isqrt(tokens.shape[2])
    patches = tokens.reshape(*tokens.shape[:2], -1)
    return layers.patches_to_map(patches, height // window, width // window, window)


def attention_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Which tokens of a window may attend to each other, after padding and the cyclic shift.

    Args:
      height, width: of the map without padding.
      window: side of a window.
      shift: rows and columns that the map was moved up and left by.

    Returns:
      [windows, window^2, window^2] bool.
    """

    def region(side: int) -> np.ndarray:
        padded = -(-side // window) * window
        origin = np.arange(padded) + shift
        # 0: in place, 1: came round from the other border, 2: padding.
        return np.where(origin % padded >= side, 2, origin >= padded)

    regions = 3 * region(height)[:, None] + region(width)[None, :]
    regions = np.asarray(to_windows(regions[None, :, :, None], window))[0, :, :, 0]
    return regions[:, :, None] == regions[:, None, :]


def relative_positions(window: int) -> np.ndarray:
    """Index of the offset between two tokens of a window: [window^2, window^2] ints.

    There are (2 window - 1)^2 offsets; (0, 0) has the middle index.
    """
    cells = np.stack(np.meshgrid(*2 * [np.arange(window)], indexing="ij"), axis=-1).reshape(-1, 2)
    offsets = cells[:, None] - cells[None, :] + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]


class SwinBlock(nn.Module):
    """A transformer block within windows.

    Attributes:
      window: side of a window, at most; a smaller map is one window.
      shifted: move the windows by half their side.
      dtype, remat: as in `unet.Encoder`.
    """

    window: int
    shifted: bool
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [B, h, w, C] -> [B, h, w, C]."""
        _, height, width, channels = x.shape
        window = min(self.window, height, width)
        shift = window // 2 if self.shifted and window < max(height, width) else 0
        heads = transformer.count_heads(channels, HEAD_FEATURES)
        shape = ((2 * window - 1) ** 2, heads)
        offsets = self.param("offsets", nn.initializers.normal(0.02), shape)
        bias = offsets[relative_positions(window)].transpose(2, 0, 1)[None]
        mask = attention_mask(height, width, window, shift)[:, None]
        bias = jnp.where(mask, bias, _MASKED)[None]
        x = jnp.pad(x, ((0, 0), (0, -height % window), (0, -width % window), (0, 0)))
        padded = x.shape[1:3]
        tokens = to_windows(jnp.roll(x, (-shift, -shift), axis=(1, 2)), window)
        block = layers.rematted(transformer.TransformerBlock, self.remat)
        tokens = block(heads, self.dtype, name="block")(tokens, bias)
        x = jnp.roll(from_windows(tokens, *padded), (shift, shift), axis=(1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """2 x 2 tokens to one.

    Attributes:
      features: width of the result.
      dtype: compute dtype.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """x: [B, h, w, C], even sides -> [B, h / 2, w / 2, features]."""
        batch, height, width, _ = x.shape
        x = to_windows(x, 2).reshape(batch, height // 2, width // 2, -1)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(x)
        return nn.Dense(self.features, use_bias=False, dtype=self.dtype)(x)


class SwinUNETR(Discriminative):
    """Swin encoder, a residual block on each of its features, convolutional decoder.

    As published, the second deepest feature goes to the decoder as it is.

    Attributes:
      condition_widths: channels per level, full resolution first; at least three levels.
      condition_blocks: pairs of transformer blocks per stage.
      window: side of a window, in tokens.
      dtype, remat: as in `unet.UNet`.
    """

    condition_widths: tuple[int, ...]
    condition_blocks: int
    window: int
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    def __post_init__(self):
        """Raises InputError for a size without any attention."""
        super().__post_init__()
        if len(self.condition_widths) < 3:
            raise InputError("config field model.condition_widths: swin_unetr needs three levels")

    @nn.compact
    def encode(self, image: Array) -> Condition:
        """image: [B, H, W, C] -> Condition whose logits are the answer."""
        widths, deepest = self.condition_widths, len(self.condition_widths) - 1
        image = image.astype(self.dtype)
        features = [layers.conv(widths[0], self.dtype, name="stem")(image)]
        pixels = (2, 2)
        x = nn.Conv(widths[1], pixels, strides=pixels, dtype=self.dtype, name="embed")(image)
        for level in range(1, deepest + 1):
            if level > 1:
                for index in range(2 * self.condition_blocks):
                    name = f"level_{level - 1}_block_{index}"
                    options = (self.window, index % 2 == 1, self.dtype, self.remat)
                    x = SwinBlock(*options, name=name)(x)
                x = PatchMerging(widths[level], self.dtype, name=f"merge_{level}")(x)
            norm = nn.LayerNorm(epsilon=1e-5, use_bias=False, use_scale=False, dtype=self.dtype)
            features.append(norm(x))
        block = layers.rematted(layers.ResBlock, self.remat)
        for level in range(deepest - 1):
            refine = block(widths[level], self.dtype, name=f"refine_{level}")
            features[level] = refine(features[level])
        last = Decoder(widths, 1, self.dtype, self.remat, name="decoder")(features)
        logits = layers.conv(self.mask_channels, jnp.float32, kernel=1, name="head")(last)
        return Condition(anchor=None, embedding=features[-1], logits=logits)
