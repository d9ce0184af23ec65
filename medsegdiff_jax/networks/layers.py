"""Building blocks of every network here: normalisation, residual block, resampling, time embedding.

All feature maps are NHWC. Parameters are float32; `dtype` is the dtype that convolutions and matrix
products compute in. Downsampling is a strided convolution and upsampling a nearest-neighbour
resize, because max-pooling is not deterministic backwards on GPUs and transposed convolutions are
slow and leave checkerboards.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from medsegdiff_jax.types import Array

GROUP_CHANNELS = 8  # channels that share one mean and variance


def group_norm(features: int, dtype: jnp.dtype, name: str | None = None) -> nn.GroupNorm:
    """GroupNorm in groups of 8 channels (one group if the width is not a multiple of 8).

    The two-pass variance costs little and stays right on inputs with a large mean, where the fast
    E[x^2] - E[x]^2 form cancels.
    """
    groups = features // GROUP_CHANNELS if features % GROUP_CHANNELS == 0 else 1
    return nn.GroupNorm(
        num_groups=groups, epsilon=1e-5, use_fast_variance=False, dtype=dtype, name=name
    )


def kernel_init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Flax's own initial values of a kernel, [..., inputs, outputs], drawn as those of a matrix.

    They are the same values: the fan-in is the product of all axes but the last either way, and
    random bits are counted in row-major order. But XLA takes longer for a draw of four axes: on a
    CPU the program that draws the tiny network compiles in half the time this way.
    """
    matrix = nn.initializers.lecun_normal()(key, (math.prod(shape[:-1]), shape[-1]), dtype)
    return matrix.reshape(shape)


def conv(features: int, dtype: jnp.dtype, *, kernel: int = 3, stride: int = 1, **kwargs) -> nn.Conv:
    """A `kernel` x `kernel` convolution, zero padded so that stride 1 keeps the size."""
    options = {"kernel_init": kernel_init, **kwargs}
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=(kernel - 1) // 2,
        dtype=dtype,
        **options,
    )


def upsample(features: Array) -> Array:
    """Nearest-neighbour resize [B, h, w, C] -> [B, 2h, 2w, C]."""
    batch, height, width, channels = features.shape
    doubled = jnp.broadcast_to(
        features[:, :, None, :, None, :], (batch, height, 2, width, 2, channels)
    )
    return doubled.reshape(batch, 2 * height, 2 * width, channels)


def patches_to_map(tokens: Array, rows: int, columns: int, patch: int) -> Array:
    """Tokens that each hold a patch, [B, rows columns, patch^2 C] -> [B, h, w, C].

    h = rows * patch and w = columns * patch; tokens run along rows, and so do cells in a patch.
    """
    batch, _, width = tokens.shape
    channels = width // patch**2
    cells = tokens.reshape(batch, rows, columns, patch, patch, channels)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch, columns * patch, channels)


def sinusoidal_embedding(t: Array, features: int) -> Array:
    """Sines and cosines of the step at geometric frequencies (Vaswani et al. 2017, section 3.5).

    Args:
      t: scalar or [B], the diffusion step in 0..T.
      features: even width of the embedding.

    Returns:
      [1, features] for a scalar t, [B, features] otherwise; float32.
    """
    half = features // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.atleast_1d(t).astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Step -> vector: sinusoids, then a two-layer MLP; one row for all if t is a scalar.

    Attributes:
      features: width of the result.
    """

    features: int

    @nn.compact
    def __call__(self, t: Array) -> Array:
        """t: scalar or [B] -> [1, features] or [B, features] float32."""
        embedding = sinusoidal_embedding(t, self.features)
        return nn.Dense(self.features)(nn.silu(nn.Dense(self.features)(embedding)))


class ResBlock(nn.Module):
    """Pre-activation residual block; an embedding scales and shifts its second norm.

    The last convolution starts at zero, so that the block starts as its shortcut.

    Attributes:
      features: output channels.
      dtype: compute dtype.
    """

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, embedding: Array | None = None) -> Array:
        """x: [B, h, w, C], embedding: [1 or B, E] or None -> [B, h, w, features]."""
        h = nn.silu(group_norm(x.shape[-1], self.dtype)(x))
        h = conv(self.features, self.dtype)(h)
        h = group_norm(self.features, self.dtype)(h)
        if embedding is not None:
            film = nn.Dense(2 * self.features, dtype=self.dtype)(nn.silu(embedding))
            scale, shift = jnp.split(film[:, None, None, :], 2, axis=-1)
            h = h * (1 + scale) + shift
        h = conv(self.features, self.dtype, kernel_init=nn.initializers.zeros)(nn.silu(h))
        if x.shape[-1] != self.features:
            x = conv(self.features, self.dtype, kernel=1, name="shortcut")(x)
        return x + h


def rematted(block: type[nn.Module], remat: bool) -> type[nn.Module]:
    """The block, or one that recomputes its activations in the backward pass to save memory."""
    return nn.remat(block) if remat else block


def batch_spec(batch: int) -> PartitionSpec | None:
    """How the compiler splits this batch over the active mesh; None if it does not.

    Within `jax.shard_map` it is one device's share already.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in mesh.axis_names if axis not in mesh.manual_axes)
    devices = math.prod(mesh.shape[axis] for axis in axes)
    return PartitionSpec(axes) if devices > 1 and batch % devices == 0 else None
