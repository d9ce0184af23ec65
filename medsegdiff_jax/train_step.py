"""One update of the parameters, as a pure function and compiled for a mesh."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from medsegdiff_jax.losses import Objective
from medsegdiff_jax.partitioning import (
    compiler_options,
    gathered,
    on_batch,
    replicated,
    scattered,
    state_shardings,
)
from medsegdiff_jax.process import Process
from medsegdiff_jax.train_state import TrainState
from medsegdiff_jax.types import Array, Batch, Params

StepFn = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
Gradients = tuple[Params, dict[str, Array]]
GradientFn = Callable[[Params, Batch], Gradients]


def make_train_step(
    model: nn.Module,
    diffusion: Process,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    config: Any,
) -> StepFn:
    """One update as a pure function (state, batch) -> (state, per-example terms and gradient norm).

    The random numbers of a step follow from (config.seed, step) and are drawn for the whole batch,
    so the number of parts that it is computed in (config.accumulate_steps) changes nothing but the
    order of sums.
    """
    num_steps = diffusion.schedule.num_steps

    def loss_fn(params, batch):
        eps, t = batch["eps"], batch["t"]
        condition = model.apply({"params": params}, batch["image"], method="encode")
        output = None
        if model.generative:
            x_t = diffusion.corrupt(diffusion.mask_to_x0(batch["mask"]), eps, t)
            x_in = diffusion.network_input(x_t, t)
            output = model.apply({"params": params}, x_in, t, condition, method="denoise")
        terms = objective(diffusion, output, condition, batch["mask"], eps, t)
        return jnp.mean(terms["total"]), terms

    def train_step(state, batch):
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        batch = batch | draw_noise(key, batch["mask"].shape, num_steps)
        params, parts = gathered(state.params), config.accumulate_steps
        gradients, terms = accumulated(jax.grad(loss_fn, has_aux=True), params, batch, parts)
        gradients = scattered(gradients)
        state = state.apply_gradients(optimizer, gradients, config.ema_decay)
        return state, {**terms, "grad_norm": optax.tree.norm(gradients)}

    return train_step


def draw_noise(key: Array, shape: tuple[int, ...], num_steps: int) -> Batch:
    """Everything random of a step, for masks of `shape` [B, H, W, K].

    Args:
      key: of the step.
      shape: of the masks.
      num_steps: T.

    Returns:
      {"t" [B] in 1..T, "eps" like the masks}.
    """
    of_t, of_eps = jax.random.split(key)
    return {
        "t": jax.random.randint(of_t, shape[:1], 1, num_steps + 1),
        "eps": jax.random.normal(of_eps, shape),
    }


def accumulated(gradient_fn: GradientFn, params: Params, batch: Batch, parts: int) -> Gradients:
    """Mean gradients of a batch and its per-example terms, computed part by part.

    Only one part's activations are held at a time. The parts are interleaved (part i has the rows
    i, i + parts, ...), so that each lies evenly on the devices without any row moving. The loop is
    unrolled: XLA's convolution gradients are many times slower in a loop on CPU.

    Args:
      gradient_fn: (params, batch) -> (mean gradients, terms [b]).
      params: any tree.
      batch: arrays [B, ...]; `parts` divides B.
      parts: number of parts.
    """
    if parts == 1:
        return gradient_fn(params, batch)
    rows = jax.tree.map(lambda x: x.reshape(len(x) // parts, parts, *x.shape[1:]), batch)
    total, terms = None, []
    for index in range(parts):
        part = jax.tree.map(lambda x, i=index: x[:, i], rows)
        # Without the barrier the compiler may compute several parts at once.
        total, part = jax.lax.optimization_barrier((total, part))
        gradients, found = gradient_fn(params, part)
        total = gradients if total is None else jax.tree.map(jnp.add, total, gradients)
        terms.append(found)
    merged = jax.tree.map(lambda *x: jnp.stack(x, axis=1).reshape(-1), *terms)
    return jax.tree.map(lambda g: g / parts, total), merged


def compile_train_step(step_fn: StepFn, mesh: Mesh, state: TrainState) -> StepFn:
    """`step_fn` compiled for `mesh`; it overwrites the state that it is given."""
    shardings = state_shardings(mesh, state)
    return jax.jit(
        step_fn,
        in_shardings=(shardings, on_batch(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options(mesh),
    )
