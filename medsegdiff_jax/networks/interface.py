"""What every network offers: `encode` once per image, and `denoise` if it is a diffusion model.

A network's attributes are the fields of config.model with the same names, and `mask_channels`.
"""

import flax.linen as nn

from medsegdiff_jax.types import Array, Condition


class Generative(nn.Module):
    """A diffusion model: `encode` what depends on the image alone, `denoise` at every step.

    Subclasses define `encode(image) -> Condition` and `denoise(x_t, t, condition)`, which returns
    [B, H, W, K] float32; what that means (eps, v or mask logits) is the process's choice.

    Attributes:
      mask_channels: K.
      encode_segments: class constant; True if `encode` gives logits, the network's segmentation
        without any denoising. They are then supervised, validated, and the answer of 0 steps.
    """

    mask_channels: int

    generative = True
    encode_segments = False

    def __call__(self, image: Array, x_t: Array, t: Array) -> tuple[Array, Condition]:
        """encode and denoise together -> (output, condition); to make and count parameters."""
        condition = self.encode(image)
        return self.denoise(x_t, t, condition), condition


class Discriminative(nn.Module):
    """A network without diffusion: the logits of `encode` are the answer, nothing is denoised.

    Attributes:
      mask_channels: K.
    """

    mask_channels: int

    generative = False
    encode_segments = True

    def __call__(self, image: Array, x_t: Array, t: Array) -> tuple[None, Condition]:
        """Same signature as the generative networks; x_t and t are not looked at."""
        del x_t, t
        return None, self.encode(image)
