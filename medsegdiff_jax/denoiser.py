"""Where the network meets the process: the DenoiseFn, and the ensemble of samples drawn with it.

Members 2 k and 2 k + 1 start from opposite noise, x_T and -x_T (antithetic variates): each is a
sample like any other, but what one draws too large the other tends to draw too small, so their mean
is nearer to that of all samples.

Pairs of members may look at the image in turn as it is, with left and right, with top and bottom,
and with both exchanged, and what they find is turned back: errors that depend on which way an image
lies average out.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from medsegdiff_jax import samplers, schedules
from medsegdiff_jax.partitioning import compiler_options, replicated
from medsegdiff_jax.process import Process
from medsegdiff_jax.types import (
    Array,
    Condition,
    DenoiseFn,
    Drawn,
    InputError,
    Params,
    Prediction,
    check_at_least,
    check_one_of,
)

MembersFn = Callable[[Params, Array, Array, Array, Array], Drawn]
"""(params, image [B, H, W, C], case [B] uint32, seed uint32, indices of the members to draw, [n, B]
int32) -> n members of B cases, and the probability of the condition model."""

SegmentFn = Callable[[Params, Array, Array, Array, Array], Drawn]
"""(params, image, case, seed, index of the first member of each case [B] int32) -> the n members
from there on, so that an ensemble can go on where it stopped; else as `MembersFn`."""

PathFn = Callable[[Params, Array, Array, Array, Array], Array]
"""(params, image [B, H, W, C], case [B] uint32, seed uint32, index of a member of each case [B]
int32) -> how it comes about [B, steps, H, W, 2 K]: the noisy mask as the network sees it, of unit
variance, and the probability that it makes of it."""


def bind(model: nn.Module, process: Process, params: Params, condition: Condition) -> DenoiseFn:
    """The denoiser of the images behind `condition`: (x_t [B, H, W, K], t scalar) -> Prediction."""

    def denoise(x_t: Array, t: Array) -> Prediction:
        x_in = process.network_input(x_t, t)
        output = model.apply({"params": params}, x_in, t, condition, method="denoise")
        return process.predict(output, x_t, t)

    return denoise


def make_members_fn(
    model: nn.Module,
    process: Process,
    *,
    steps: int,
    sampler: str,
    member_chunk: int,
    mirror: bool = False,
) -> MembersFn:
    """Ensemble sampling as one function: encode each view, then members x steps of `denoise`.

    The noise of a member follows from (seed, case, member, step) alone, so a case's samples do not
    depend on its batch, the chunk size or the number of devices.

    Args:
      model: network with `encode` and, if `generative`, `denoise`.
      process: what the model was trained with.
      steps: denoising steps; 0 returns the condition model's segmentation (of each view).
      sampler: one of `samplers.SAMPLERS`.
      member_chunk: members evaluated at once (vmapped); bounds the memory.
      mirror: give members four views, see above; for a model that was trained with mirror images.

    Raises:
      InputError: see `check_settings`.
    """
    num_timesteps = process.schedule.num_steps
    check_settings(model, num_timesteps, steps=steps, sampler=sampler, member_chunk=member_chunk)
    trajectory = schedules.trajectory(num_timesteps, steps) if steps else None
    solver = samplers.SAMPLERS[sampler]
    num_views = count_views(mirror)

    def sample_members(
        params: Params, image: Array, case: Array, seed: Array, indices: Array
    ) -> Drawn:
        """See `MembersFn`."""
        condition_of = _encode_views(model, params, image, mirror)
        condition_probability = None
        if model.encode_segments:
            all_views = jnp.arange(num_views)[:, None].repeat(len(image), axis=1)
            of_views = _condition_probabilities(process, condition_of, all_views)
            condition_probability = of_views.mean(axis=0)
        if trajectory is None:  # nothing is drawn: a member is the answer to a view
            members = _condition_probabilities(process, condition_of, indices % num_views)
            return Drawn(members, condition_probability)
        shape = (*image.shape[:-1], model.mask_channels)

        def member(index: Array) -> Array:  # [B]
            view = index // 2 % num_views  # the same for a pair with opposite noise
            denoise = bind(model, process, params, condition_of(view))
            x_noise, keys = _start(seed, case, index, shape)
            x_0 = samplers.sample(denoise, process.schedule, trajectory, x_noise, keys, solver)
            return mirrored(process.x0_to_mask(x_0), view)

        members = jax.lax.map(member, indices, batch_size=min(member_chunk, len(indices)))
        return Drawn(members, condition_probability)

    return sample_members


def make_path_fn(model: nn.Module, process: Process, *, steps: int, sampler: str) -> PathFn:
    """How a member that looks at the image as it is comes about: what `make_members_fn` leaves out.

    Args:
      model, process, steps, sampler: as there.

    Raises:
      InputError: as there, or steps = 0.
    """
    if not steps:
        raise InputError("steps=0 has no path from noise to an answer; at least 1 step is needed")
    check_settings(model, process.schedule.num_steps, steps=steps, sampler=sampler)
    trajectory = schedules.trajectory(process.schedule.num_steps, steps)
    solver = samplers.SAMPLERS[sampler]

    def trace(params: Params, image: Array, case: Array, seed: Array, index: Array) -> Array:
        """See `PathFn`."""
        condition = model.apply({"params": params}, image, method="encode")
        denoise = bind(model, process, params, condition)
        x_noise, keys = _start(seed, case, index, (*image.shape[:-1], model.mask_channels))
        _, (x_t, x_0) = samplers.sample_path(
            denoise, process.schedule, trajectory, x_noise, keys, solver
        )
        noisy = jax.vmap(process.network_input)(x_t, jnp.asarray(trajectory[:-1]))
        both = jnp.concatenate([noisy, process.x0_to_mask(x_0)], axis=-1)
        return jnp.moveaxis(both, 0, 1)

    return trace


def count_views(mirror: bool) -> int:
    """How many ways to look at an image: with the sides exchanged or not, along each axis."""
    return 4 if mirror else 1


def _encode_views(
    model: nn.Module, params: Params, image: Array, mirror: bool
) -> Callable[[Array], Condition]:
    """All views in one batch; the result gives the conditions of the cases in the views [B]."""
    cases = jnp.arange(len(image))
    turned = [mirrored(image, jnp.full_like(cases, view)) for view in range(count_views(mirror))]
    conditions = model.apply({"params": params}, jnp.concatenate(turned), method="encode")

    def condition_of(view: Array) -> Condition:
        if not mirror:
            return conditions
        return jax.tree.map(lambda leaf: leaf[view * len(cases) + cases], conditions)

    return condition_of


def _condition_probabilities(
    process: Process, condition_of: Callable[[Array], Condition], view: Array
) -> Array:
    """What the condition model alone says of the cases in the views [n, B]: [n, B, H, W, K]."""
    found = jax.vmap(lambda v: process.logits_to_mask(condition_of(v).logits))(view)
    return jax.vmap(mirrored)(found, view)


def _start(seed: Array, case: Array, index: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """What members with these indices [B] start from: noise of this shape, and their keys [B]."""
    root = jax.random.key(seed)
    case_keys = jax.vmap(lambda number: jax.random.fold_in(root, number))(case)
    pair_keys, keys = (jax.vmap(jax.random.fold_in)(case_keys, i) for i in (index // 2, index))
    sign = 1.0 - 2.0 * (index % 2)[:, None, None, None]
    return sign * samplers.gaussian_like(pair_keys, jnp.zeros(shape)), keys


def mirrored(images: Array, view: Array) -> Array:
    """Images [B, H, W, C] as views [B] show them, or back again.

    Bit 0 of a view exchanges left and right, bit 1 top and bottom.
    """
    for bit, axis in enumerate((2, 1)):
        turned = (view >> bit & 1).astype(bool)[:, None, None, None]
        images = jnp.where(turned, jnp.flip(images, axis), images)
    return images


def check_settings(
    network: nn.Module | type[nn.Module],
    num_timesteps: int,
    *,
    steps: int,
    sampler: str,
    member_chunk: int = 1,
) -> None:
    """What is known to be wrong with how to sample before there is a network.

    Args:
      network: its class is enough.
      num_timesteps: T of the training schedule.
      steps, sampler, member_chunk: as in `make_members_fn`.

    Raises:
      InputError: a value out of range, steps > 0 for a model that has no diffusion network, or
        steps = 0 for one whose `encode` gives no segmentation; begins with the setting's name.
    """
    check_one_of("sampler", sampler, samplers.SAMPLERS)
    check_at_least("member_chunk", member_chunk)
    if steps:
        schedules.trajectory(num_timesteps, steps)
        if not network.generative:
            raise InputError(
                f"steps: {steps} needs a diffusion network, which this model does not have; only "
                "steps=0 is possible"
            )
    elif not network.encode_segments:
        raise InputError(
            "steps: 0 asks for a segmentation without denoising, which this network does not have; "
            "at least 1 step is needed"
        )


def compile_segment_fn(draw: MembersFn, mesh: Mesh, members: int) -> SegmentFn:
    """`draw` compiled for `mesh`: cases split over "data", members over "model".

    Each device draws its members of its cases by itself (`jax.shard_map`) and only the result is
    gathered. Left to the compiler, the vmap over members makes every convolution reshape members
    and cases into one axis, for which it gathers the cases of all devices at each layer.

    Args:
      draw: from `make_members_fn`.
      mesh: from `partitioning.sampling_mesh`; "data" divides the cases of a batch.
      members: samples per case and call, n.

    Raises:
      InputError: members < 1.
    """
    check_at_least("members", members)
    cases, shared = PartitionSpec("data"), PartitionSpec()
    per_device = jax.shard_map(
        draw,
        mesh=mesh,
        in_specs=(shared, cases, cases, shared, PartitionSpec("model", "data")),
        out_specs=Drawn(PartitionSpec("model", "data"), cases),
        check_vma=False,  # the scan's noise starts from keys that are the same on all devices
    )
    drawn = -(-members // mesh.shape["model"]) * mesh.shape["model"]

    def all_members(params: Params, image: Array, case: Array, seed: Array, first: Array) -> Drawn:
        indices = first + jnp.arange(drawn)[:, None]
        found = per_device(params, image, case, seed, indices)
        return found.replace(members=found.members[:members])

    return jax.jit(
        all_members, out_shardings=replicated(mesh), compiler_options=compiler_options(mesh)
    )
