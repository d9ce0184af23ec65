"""One update: what it draws, what recycling noises, and that parts are the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from medsegdiff_jax import denoiser, losses, networks, process, train_step
from medsegdiff_jax.train_state import TrainState
from medsegdiff_jax.types import Task

SIZE, BATCH = 16, 4
TASK = Task(("lesion",), (1,), True, 3)


@pytest.fixture(scope="module")
def setting():
    """Config, model, process, a state with random parameters, and a batch."""
    config = base.get_config("default,tiny")
    config.model.update(anchor="none", semantic="none")  # compiles twice as fast
    model = networks.build(config.model, TASK, SIZE)
    image = jax.random.normal(jax.random.key(1), (BATCH, SIZE, SIZE, 3))
    mask = (image[..., :1] > 0.5).astype(jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image, mask, jnp.ones(BATCH, int))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.2, size=leaf.shape), jnp.float32),
        shapes["params"],
    )
    optimizer = optax.sgd(1.0)  # so that the update is the gradient
    state = TrainState(jnp.int32(3), params, params, optimizer.init(params))
    batch = {"image": image, "mask": mask}
    return config, model, process.build(config.diffusion, TASK), optimizer, state, batch


def updated(setting, **fields):
    """Gradient and loss terms of one step with changed config fields."""
    config, model, diffusion, optimizer, state, batch = setting
    changed = config.copy_and_resolve_references()
    changed.update(fields)
    objective = losses.build(config.loss)
    step = train_step.make_train_step(model, diffusion, objective, optimizer, changed)
    new, terms = jax.jit(step)(state, batch)
    return jax.tree.map(jnp.subtract, state.params, new.params), terms


def assert_close(ours, theirs):
    """The same trees up to the order of sums."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(np.abs(other).max()) + 1e-6)


def test_parts_are_the_whole(setting):
    whole, whole_terms = updated(setting)
    parts, part_terms = updated(setting, accumulate_steps=2)
    assert_close(parts, whole)
    for name, value in whole_terms.items():
        np.testing.assert_allclose(part_terms[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("recycle", [0.0, 1.0])
def test_the_gradient_is_that_of_the_loss_at_the_mask_or_at_the_networks_own_answer(
    setting, recycle
):
    config, model, diffusion, _, state, batch = setting
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    drawn = train_step.draw(key, batch["mask"].shape, 1000, recycle)

    def apply(params, *args, method):
        return model.apply({"params": params}, *args, method=method)

    x_0 = diffusion.mask_to_x0(batch["mask"])
    if recycle:
        condition = apply(state.params, batch["image"], method="encode")
        denoise = denoiser.bind(model, diffusion, state.params, condition)
        x_0 = denoise(drawn["start"], jnp.int32(1000)).x0

    @jax.jit
    def loss(params):
        t, eps = drawn["t"], drawn["eps"]
        x_in = diffusion.network_input(diffusion.corrupt(x_0, eps, t), t)
        condition = apply(params, batch["image"], method="encode")
        output = apply(params, x_in, t, condition, method="denoise")
        objective = losses.build(config.loss)
        return objective(diffusion, output, condition, batch["mask"], eps, t)["total"].mean()

    gradient, terms = updated(setting, recycle=recycle)
    np.testing.assert_allclose(terms["total"].mean(), loss(state.params), rtol=1e-4)
    assert_close(gradient, jax.jit(jax.grad(loss))(state.params))


def test_about_the_wished_share_is_recycled():
    drawn = train_step.draw(jax.random.key(0), (4000, 1, 1, 1), 10, 0.25)
    assert 0.22 < drawn["recycled"].mean() < 0.28
    assert set(np.unique(drawn["t"])) == set(range(1, 11))
    assert "recycled" not in train_step.draw(jax.random.key(0), (4, 1, 1, 1), 10, 0.0)
