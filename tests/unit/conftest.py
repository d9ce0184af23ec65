"""A model of the tiny size with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from medsegdiff_jax import checkpoint, networks
from medsegdiff_jax.types import Task

SIDE = 16


@pytest.fixture(scope="session")
def tiny_model():
    """LoadedModel of the tiny size: binary, colour images, 3 members of 2 steps."""
    config = base.get_config("default,tiny")
    config.data.image_size = SIDE
    config.sampling.update(members=3, steps=2, member_chunk=2, batch_size=4)
    task = Task(("lesion",), (255,), True, 3)
    model = networks.build(config.model, task, SIDE)
    image = jnp.zeros((1, SIDE, SIDE, 3))
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), image, image[..., :1], jnp.zeros(1, jnp.int32)
    )["params"]
    # Initial values would end in zeros, and every probability would be one half.
    rng = np.random.default_rng(1)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )
    metadata = {"config": config.to_dict(), "task": task.to_json(), "source": "untrained weights"}
    return checkpoint.LoadedModel(params, config, task, metadata["source"], metadata)
