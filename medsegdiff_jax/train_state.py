"""Everything a resumed run needs, and the optimizer that moves it.

No key and no data iterator: both follow from the step.
"""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from medsegdiff_jax.types import Array, InputError, Params, check_at_least


@flax.struct.dataclass
class TrainState:
    """Parameters, their running average, and the optimizer's state after `step` updates.

    Attributes:
      step: scalar int32.
      params, ema_params: float32 trees of the same structure.
      opt_state: optax state.
    """

    step: Array
    params: Params
    ema_params: Params
    opt_state: optax.OptState

    def apply_gradients(
        self, optimizer: optax.GradientTransformation, gradients: Params, ema_decay: float
    ) -> "TrainState":
        """The state after one update of parameters and average."""
        updates, opt_state = optimizer.update(gradients, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        ema_params = update_ema(self.ema_params, params, self.step, ema_decay)
        return TrainState(self.step + 1, params, ema_params, opt_state)


def update_ema(ema_params: Params, params: Params, step: Array, decay: float) -> Params:
    """Exponential moving average that starts at the parameters and forgets the start early.

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that an average over a short run
    is not dominated by its initialisation.

    Args:
      ema_params, params: trees of the same structure.
      step: number of updates before this one.
      decay: in [0, 1).
    """
    warm = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(
        lambda average, new: average + (1 - warm) * (new - average), ema_params, params
    )


def build_optimizer(optim: Any, num_steps: int) -> optax.GradientTransformation:
    """AdamW behind gradient clipping, with warm-up and a constant or cosine learning rate.

    Args:
      optim: config.optim (learning_rate, schedule, warmup_steps, weight_decay, grad_clip_norm).
      num_steps: length of the run; the cosine ends there.

    Raises:
      InputError: an impossible value, with its field.
    """
    for field in ("learning_rate", "grad_clip_norm"):
        if not optim[field] > 0:
            raise InputError(f"config field optim.{field}: {optim[field]} is not positive")
    check_at_least("config field optim.weight_decay", optim.weight_decay, 0)
    warmup = optim.warmup_steps
    check_at_least("config field optim.warmup_steps", warmup, 0)
    if optim.schedule == "constant" and not warmup:
        rate = optax.constant_schedule(optim.learning_rate)  # the next one would stay at 0
    elif optim.schedule == "constant":
        rate = optax.warmup_constant_schedule(0.0, optim.learning_rate, warmup)
    elif optim.schedule == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0, optim.learning_rate, warmup, max(num_steps, warmup + 1)
        )
    else:
        raise InputError(
            f"config field optim.schedule: {optim.schedule!r} is not constant or cosine"
        )
    return optax.chain(
        optax.clip_by_global_norm(optim.grad_clip_norm),
        optax.adamw(rate, weight_decay=optim.weight_decay, mask=_decayed),
    )


def _decayed(params: Params) -> Params:
    """Weight decay acts on kernels only: not on biases, norms or the learned Gaussians."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def init_params(model: nn.Module, image_shape: tuple[int, int, int], key: Array) -> Params:
    """Fresh parameters; arguments as in `init`."""
    image = jnp.zeros((1, *image_shape))
    x_t = jnp.zeros((1, *image_shape[:2], model.mask_channels))
    return model.init(key, image, x_t, jnp.ones((1,), jnp.int32))["params"]


def init(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    key: Array,
) -> TrainState:
    """A fresh state; jit it, or `jax.eval_shape` it for the shapes alone.

    Args:
      model: from `networks.build`.
      optimizer: from `build_optimizer`.
      image_shape: (H, W, C).
      key: typed key.
    """
    params = init_params(model, image_shape, key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )
