"""The Spectrum-Space Transformer, SS-Former, and its NBP filter (Wu et al. 2024, section 3.4).

N blocks of two cross-attention modules join the deepest diffusion feature e and the deepest
condition feature c. In a module, query and key are taken to the spectrum, weighted, multiplied to
an affinity map M, filtered by H_t, and taken back:

    M = (F(q) Wq) (F(k) Wk)^T,   M' = H_t . M,   f = F^{-1}(M') (v Wv)

Where the paper is silent we read: F is the DFT along the token axis and the weights are real. Then
F(q) Wq = F(q Wq), and M is exactly the 2-D DFT of the real affinity A = (q Wq)(k Wk)^T. So a module
is

    A -> rfft2 -> multiply by H_t on the half plane -> irfft2 -> apply to the real values.

With H_t = 1 this is softmax-free dot-product attention, and with any real H_t on the half plane the
result is real (a real filter on the full plane would not give that; on the columns of frequency 0
and Nyquist, which hold their own mirror images, the gain is the mean of H_t at k and -k). A is
divided by sqrt(d) as usual and by the number of keys, since no softmax normalises its rows. As in a
standard vision transformer, inputs are layer-normalised, and attention and MLP are residual to the
stream that they refine.

Module 1 queries with e and reads c, which gives c~. Module 2 queries with c~ and reads e, which
gives the c of the next block. Each ends with an MLP (the paper names one for the first only). The
last c goes to the decoder in place of e.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from medsegdiff_jax.networks import layers
from medsegdiff_jax.types import Array

SEMANTICS = ("none", "ss_former", "nbp")


def frequency_coordinates(rows: int, columns: int) -> Array:
    """The two frequencies of every cell of rfft2's half plane, in units of the Nyquist frequency.

    Returns:
      [rows, columns // 2 + 1, 2] float32; the first in [-1, 1), the second in [0, 1].
    """
    vertical = 2 * jnp.fft.fftfreq(rows)
    horizontal = 2 * jnp.fft.rfftfreq(columns)
    return jnp.stack(jnp.meshgrid(vertical, horizontal, indexing="ij"), axis=-1)


def filter_spectrum(values: Array, spectrum_filter: Array) -> Array:
    """irfft2(filter . rfft2(values)) over the last two axes, in float32.

    Under a mesh the transform runs inside shard_map: XLA would gather the whole batch for an
    automatically sharded FFT.

    Args:
      values: [B, ..., rows, columns] real.
      spectrum_filter: [1 or B, ..., rows, columns // 2 + 1] real or complex.

    Returns:
      [B, ..., rows, columns] float32.
    """

    def transform(values: Array, weights: Array) -> Array:
        spectrum = jnp.fft.rfft2(values.astype(jnp.float32))
        return jnp.fft.irfft2(spectrum * weights, s=values.shape[-2:])

    split = layers.batch_spec(values.shape[0])
    if split is None:
        return transform(values, spectrum_filter)
    of_filter = split if spectrum_filter.shape[0] > 1 else PartitionSpec()
    return jax.shard_map(transform, in_specs=(split, of_filter), out_specs=split)(
        values, spectrum_filter
    )


class NBPFilter(nn.Module):
    """Neural Band-Pass filter: frequency coordinates and diffusion step -> gain in (0, 1).

    R blocks of [1x1 convolution, layer norm, scale and shift by the step, activation], then a
    sigmoid, so that the filter is a smooth function of frequency (section 3.4). We read "two
    values" of the two time MLPs as one scale and one shift per channel. The gain starts near 0.95
    everywhere.

    Attributes:
      features: width of the blocks.
      blocks: R.
      dtype: compute dtype of the blocks. In training, where each image has a step and so a filter
        of its own, their activations are a large part of what the network moves through memory.
    """

    features: int
    blocks: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, embedding: Array, rows: int, columns: int) -> Array:
        """embedding: [1 or B, E] of the step -> [1 or B, rows, columns // 2 + 1] float32."""
        x = frequency_coordinates(rows, columns)[None]
        embedding = nn.silu(embedding)

        def of_step(name: str) -> Array:
            values = nn.Dense(self.features, dtype=self.dtype, name=name)(embedding)
            return values[:, None, None, :]

        for index in range(self.blocks):
            # Coordinates need float32, and cost little: they are the same for the whole batch.
            dtype = self.dtype if index else jnp.float32
            x = nn.Dense(self.features, dtype=dtype, name=f"conv_{index}")(x)
            norm = nn.LayerNorm(epsilon=1e-5, use_bias=False, use_scale=False, dtype=self.dtype)
            x = nn.silu(norm(x) * (1 + of_step(f"scale_{index}")) + of_step(f"shift_{index}"))
        gain = nn.Dense(
            1,
            dtype=jnp.float32,
            kernel_init=nn.initializers.normal(0.01),
            bias_init=nn.initializers.constant(3.0),
            name="gain",
        )(x)
        return nn.sigmoid(gain[..., 0])


FilterFactory = Callable[..., NBPFilter]
"""(name=...) -> a new filter."""


class SpectralAttention(nn.Module):
    """One cross-attention module in spectrum space, without its MLP.

    Attributes:
      features: width d of query, key and value.
      spectrum_filter: makes an NBP filter; None for no filter.
      dtype: compute dtype of matrix products; the transform is float32.
    """

    features: int
    spectrum_filter: FilterFactory | None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, query: Array, key_value: Array, embedding: Array) -> Array:
        """query: [B, n_q, D], key_value: [B, n_k, D], embedding: [1 or B, E] -> [B, n_q, d]."""

        def project(name: str, tokens: Array) -> Array:
            return nn.Dense(self.features, use_bias=False, dtype=self.dtype, name=name)(tokens)

        q, k, v = project("query", query), project("key", key_value), project("value", key_value)
        affinity = jnp.einsum("bqd,bkd->bqk", q, k, preferred_element_type=jnp.float32)
        affinity = affinity / (jnp.sqrt(self.features) * k.shape[1])
        if self.spectrum_filter is not None:
            nbp = self.spectrum_filter(name="nbp_filter")
            affinity = filter_spectrum(affinity, nbp(embedding, *affinity.shape[1:]))
        return jnp.einsum("bqk,bkd->bqd", affinity.astype(self.dtype), v)


class SpectralModule(nn.Module):
    """Spectral cross-attention and MLP, both residual to the stream that is refined.

    Attributes: as in `SpectralAttention`.
    """

    features: int
    spectrum_filter: FilterFactory | None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, stream: Array, query: Array, key_value: Array, embedding: Array) -> Array:
        """All tokens [B, n, features] -> the refined stream [B, n, features]."""

        def norm(tokens: Array) -> Array:
            return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype)(tokens)

        options = (self.features, self.spectrum_filter, self.dtype)
        attention = SpectralAttention(*options, name="attention")
        attended = attention(norm(query), norm(key_value), embedding)
        stream = stream + nn.Dense(self.features, dtype=self.dtype, name="output")(attended)
        hidden = nn.Dense(2 * self.features, dtype=self.dtype, name="mlp_in")(norm(stream))
        return stream + nn.Dense(self.features, dtype=self.dtype, name="mlp_out")(nn.gelu(hidden))


class SSFormer(nn.Module):
    """N blocks that carry the condition feature into the diffusion feature, in spectrum space.

    Attributes:
      features: token width.
      blocks: N.
      patch: side of a patch, in cells of the deepest feature map.
      spectrum_filter: as in `SpectralAttention`; each module has a filter of its own.
      dtype: compute dtype.
    """

    features: int
    blocks: int
    patch: int
    spectrum_filter: FilterFactory | None
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, e: Array, c: Array, embedding: Array) -> Array:
        """Joins e [B, h, w, D] (diffusion), c [B, h, w, D'] (condition), embedding [1 or B, E].

        Returns:
          [B, h, w, D], to take the place of e.
        """
        batch, height, width, channels = e.shape
        rows, columns = height // self.patch, width // self.patch

        def tokens(features: Array, name: str) -> Array:
            patch = (self.patch, self.patch)
            patches = nn.Conv(self.features, patch, strides=patch, dtype=self.dtype, name=name)
            return patches(features).reshape(batch, rows * columns, self.features)

        e, c = tokens(e, "patchify_e"), tokens(c, "patchify_c")
        options = (self.features, self.spectrum_filter, self.dtype)
        for index in range(self.blocks):
            c = SpectralModule(*options, name=f"block_{index}_read_c")(c, e, c, embedding)
            c = SpectralModule(*options, name=f"block_{index}_read_e")(c, c, e, embedding)
        c = nn.Dense(self.patch**2 * channels, dtype=self.dtype, name="unpatchify")(c)
        return layers.patches_to_map(c, rows, columns, self.patch)
