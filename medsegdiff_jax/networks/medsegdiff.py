"""MedSegDiff-V2, assembled: condition once, denoise often (Wu et al. 2024, figure 2).

`encode` sees the image alone and runs once per image; `denoise` sees the noisy mask, the step and
the condition, and runs once per step and ensemble member. The anchor condition gates the first
encoder feature of the diffusion UNet (U-SA); the semantic condition meets its deepest feature
(SS-Former).

Beyond the paper, and off in its recipe, is `condition_prior`. For a pixel m of the mask, Bayes'
rule reads

    logit p(m | x_t, image) = logit p(m | image) + log p(x_t | m, image) - log p(x_t | 1-m, image),

so where the output are mask logits (x0-prediction) the condition model's own logits can serve as
the prior, and the diffusion network learns what x_t adds: nothing at t = T, where x_t is pure
noise, and everything at small t. `evidence` gives it the sums over pixels that show this early
(`networks/evidence.py`).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from medsegdiff_jax.networks import layers
from medsegdiff_jax.networks.evidence import Evidence
from medsegdiff_jax.networks.interface import Generative
from medsegdiff_jax.networks.spectral import SEMANTICS, NBPFilter, SSFormer
from medsegdiff_jax.networks.uncertain_attention import ANCHORS, SpatialGate
from medsegdiff_jax.networks.unet import Decoder, Encoder, UNet
from medsegdiff_jax.types import Array, Condition, InputError, check_one_of


class MedSegDiffV2(Generative):
    """The condition UNet, the diffusion UNet, and the two conditions that join them.

    Attributes:
      mask_channels: K.
      one_hot: True if the K channels are exclusive.
      condition_widths, condition_blocks: levels of the condition UNet.
      widths, blocks: levels of the diffusion UNet; as many levels as the condition UNet.
      anchor: "none", "spatial_attention" or "u_sa".
      anchor_kernel: taps of the U-SA Gaussian; odd.
      semantic: "none", "ss_former" (no filter) or "nbp" (with the NBP filter).
      semantic_features, semantic_blocks, semantic_patch: token width, N and patch side of
        SS-Former.
      filter_features, filter_blocks: width and R of the NBP filter.
      condition_prior: add the condition model's logits, without their gradient, to the output.
      evidence: give the encoder what x_t says where the condition model is in doubt.
      dtype: compute dtype; parameters, norms' statistics, FFT and outputs are float32.
      remat: recompute residual blocks' activations in the backward pass.
    """

    one_hot: bool
    condition_widths: tuple[int, ...]
    condition_blocks: int
    widths: tuple[int, ...]
    blocks: int
    anchor: str
    anchor_kernel: int
    semantic: str
    semantic_features: int
    semantic_blocks: int
    semantic_patch: int
    filter_features: int
    filter_blocks: int
    condition_prior: bool
    evidence: bool
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    encode_segments = True

    def __post_init__(self):
        """Raises InputError for an unknown ablation, even taps, or UNets of different depths."""
        super().__post_init__()
        check_one_of("config field model.anchor", self.anchor, ANCHORS)
        check_one_of("config field model.semantic", self.semantic, SEMANTICS)
        if self.anchor_kernel % 2 == 0:
            raise InputError(f"config field model.anchor_kernel: {self.anchor_kernel} is not odd")
        if len(self.widths) != len(self.condition_widths):
            raise InputError(
                "config fields model.widths and model.condition_widths differ in length"
            )

    def setup(self):
        """Declares both halves; `encode` and `denoise` use disjoint parameters."""
        options = (self.widths, self.blocks, self.dtype, self.remat)
        self.condition_model = UNet(
            self.mask_channels, self.condition_widths, self.condition_blocks, self.dtype, self.remat
        )
        if self.anchor != "none":
            self.gate = SpatialGate(self.anchor == "u_sa", self.anchor_kernel)
        self.time_embedding = layers.TimeEmbedding(4 * self.widths[0])
        self.stem = layers.conv(self.widths[0], self.dtype)
        self.encoder = Encoder(*options)
        if self.evidence:
            self.evidence_maps = Evidence(self.widths, self.dtype)
        if self.semantic != "none":
            filter_options = (self.filter_features, self.filter_blocks, self.dtype)
            nbp = functools.partial(NBPFilter, *filter_options)
            self.ss_former = SSFormer(
                features=self.semantic_features,
                blocks=self.semantic_blocks,
                patch=self.semantic_patch,
                spectrum_filter=nbp if self.semantic == "nbp" else None,
                dtype=self.dtype,
            )
        self.decoder = Decoder(*options)
        self.head = layers.conv(self.mask_channels, jnp.float32, kernel_init=nn.initializers.zeros)

    def encode(self, image: Array) -> Condition:
        """image: [B, H, W, C], normalised -> everything `denoise` needs to know of it."""
        last, deepest, logits = self.condition_model(image)
        anchor = self.gate(last) if self.anchor != "none" else None
        return Condition(anchor=anchor, embedding=deepest, logits=logits)

    def denoise(self, x_t: Array, t: Array, condition: Condition) -> Array:
        """One evaluation of the diffusion network.

        Args:
          x_t: [B, H, W, K] noisy mask, unit variance.
          t: scalar (shared by the batch: embedding and filters are computed once) or [B]; 1..T.
          condition: of the same B images.

        Returns:
          [B, H, W, K] float32; what it means (eps, v or mask logits) is the process's choice.
        """
        embedding = self.time_embedding(t)
        x = self.stem(x_t.astype(self.dtype))
        if condition.anchor is not None:
            x = x * (1 + condition.anchor.astype(self.dtype))
        entering = []
        if self.evidence:
            to_probability = jax.nn.softmax if self.one_hot else jax.nn.sigmoid
            entering = self.evidence_maps(x_t, to_probability(condition.logits))
        features = self.encoder(x, embedding, entering)
        if self.semantic != "none":
            features[-1] = self.ss_former(features[-1], condition.embedding, embedding)
        output = self.head(self.decoder(features, embedding).astype(jnp.float32))
        if self.condition_prior:
            output = output + jax.lax.stop_gradient(condition.logits)
        return output
