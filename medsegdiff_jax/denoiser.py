"""Where the network meets the process: the DenoiseFn, and the ensemble of samples drawn with it."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from medsegdiff_jax import samplers, schedules
from medsegdiff_jax.partitioning import on_data, replicated
from medsegdiff_jax.process import Process
from medsegdiff_jax.types import Array, Condition, DenoiseFn, InputError, Params, Prediction

SegmentFn = Callable[[Params, Array, Array, Array], Array]
"""(params, image [B, H, W, C], case [B] uint32, seed uint32) -> probabilities [n, B, H, W, K]."""


def bind(model: nn.Module, process: Process, params: Params, condition: Condition) -> DenoiseFn:
    """The denoiser of the images behind `condition`: (x_t [B, H, W, K], t scalar) -> Prediction."""

    def denoise(x_t: Array, t: Array) -> Prediction:
        x_in = process.network_input(x_t, t)
        output = model.apply({"params": params}, x_in, t, condition, method="denoise")
        return process.predict(output, x_t, t)

    return denoise


def make_segment_fn(
    model: nn.Module,
    process: Process,
    *,
    members: int,
    steps: int,
    sampler: str,
    member_chunk: int,
) -> SegmentFn:
    """Ensemble sampling as one function to jit: encode once, then members x steps of `denoise`.

    The noise of a member follows from (seed, case, member, step) alone, so a case's samples do not
    depend on its batch, the chunk size or the number of devices.

    Args:
      model: network with `encode` and, if `generative`, `denoise`.
      process: what the model was trained with.
      members: n, samples per case.
      steps: denoising steps; 0 returns the condition model's own segmentation, as one member.
      sampler: "ddim" or "ddpm".
      member_chunk: members evaluated at once (vmapped); bounds the memory.

    Raises:
      InputError: a value out of range, steps > 0 for a model that has no diffusion network, or
        steps = 0 for one whose `encode` gives no segmentation.
    """
    if sampler not in samplers.SAMPLERS:
        raise InputError(f"sampler {sampler!r} is not one of {', '.join(samplers.SAMPLERS)}")
    if members < 1 or member_chunk < 1:
        raise InputError(f"members ({members}) and member_chunk ({member_chunk}) must be positive")
    if steps and not model.generative:
        raise InputError("this model has no diffusion network: only steps=0 is possible")
    if not steps and not model.encode_segments:
        raise InputError(
            f"steps=0 asks for a segmentation without denoising, which {type(model).__name__} does "
            "not have; at least 1 step is needed"
        )
    trajectory = schedules.trajectory(process.schedule.num_steps, steps) if steps else None
    step_fn = samplers.SAMPLERS[sampler]

    def segment(params: Params, image: Array, case: Array, seed: Array) -> Array:
        condition = model.apply({"params": params}, image, method="encode")
        if trajectory is None:
            return process.logits_to_mask(condition.logits)[None]
        denoise = bind(model, process, params, condition)
        root = jax.random.key(seed)
        case_keys = jax.vmap(lambda number: jax.random.fold_in(root, number))(case)

        def member(index: Array) -> Array:
            keys = jax.vmap(jax.random.fold_in, (0, None))(case_keys, index)
            shape = (*image.shape[:-1], model.mask_channels)
            x_noise = samplers.gaussian_like(keys, jnp.zeros(shape))
            x_0 = samplers.sample(denoise, process.schedule, trajectory, x_noise, keys, step_fn)
            return process.x0_to_mask(x_0)

        chunk = min(member_chunk, members)
        return jax.lax.map(member, jnp.arange(members), batch_size=chunk)

    return segment


def compile_segment_fn(segment: SegmentFn, mesh: Mesh) -> SegmentFn:
    """`segment` compiled for `mesh`: cases split over "data", parameters and result on all.

    Each device runs the whole ensemble of its cases by itself (`jax.shard_map`) and only the result
    is gathered. Left to the compiler, the vmap over members makes every convolution reshape members
    and cases into one axis, for which it gathers the cases of all devices at each layer.
    """
    shared, split = replicated(mesh), on_data(mesh)
    cases = PartitionSpec("data")
    per_device = jax.shard_map(
        segment,
        mesh=mesh,
        in_specs=(PartitionSpec(), cases, cases, PartitionSpec()),
        out_specs=PartitionSpec(None, "data"),
        check_vma=False,  # the scan's noise starts from keys that are the same on all devices
    )
    return jax.jit(per_device, in_shardings=(shared, split, split, shared), out_shardings=shared)
