"""One update: what it draws, which gradient it takes, and that parts are the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from medsegdiff_jax import losses, networks, process, train_step
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
    return config, model, process.build(config.diffusion, TASK.one_hot), optimizer, state, batch


def updated(setting, **fields):
    """Gradient, loss terms and new state of one step with changed config fields."""
    config, model, diffusion, optimizer, state, batch = setting
    changed = config.copy_and_resolve_references()
    changed.update(fields)
    objective = losses.build(config.loss)
    step = train_step.make_train_step(model, diffusion, objective, optimizer, changed)
    new, terms = jax.jit(step)(state, batch)
    return jax.tree.map(jnp.subtract, state.params, new.params), terms, new


def assert_close(ours, theirs):
    """The same trees up to the order of sums."""
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(np.abs(other).max()) + 1e-6)


def test_parts_are_the_whole(setting):
    whole, whole_terms, once = updated(setting)
    parts, part_terms, then = updated(setting, accumulate_steps=2, ema_decay=0.25)
    assert_close(parts, whole)
    old = setting[4].params
    for new, decay in ((once, 4 / 13), (then, 0.25)):  # at step 3 the warm-up bounds the default
        moved = jax.tree.map(lambda a, b, kept=decay: a + (1 - kept) * (b - a), old, new.params)
        assert_close(new.ema_params, moved)
    for name, value in whole_terms.items():
        np.testing.assert_allclose(part_terms[name], value, rtol=1e-4, err_msg=name)


def test_the_gradient_is_that_of_the_loss(setting):
    config, model, diffusion, _, state, batch = setting
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    drawn = train_step.draw_noise(key, batch["mask"].shape, 1000)

    def apply(params, *args, method):
        return model.apply({"params": params}, *args, method=method)

    @jax.jit
    def loss(params):
        t, eps = drawn["t"], drawn["eps"]
        x_t = diffusion.corrupt(diffusion.mask_to_x0(batch["mask"]), eps, t)
        condition = apply(params, batch["image"], method="encode")
        output = apply(params, diffusion.network_input(x_t, t), t, condition, method="denoise")
        objective = losses.build(config.loss)
        return objective(diffusion, output, condition, batch["mask"], eps, t)["total"].mean()

    gradient, terms, _ = updated(setting)
    np.testing.assert_allclose(terms["total"].mean(), loss(state.params), rtol=1e-4)
    assert_close(gradient, jax.jit(jax.grad(loss))(state.params))


def test_every_step_of_the_diffusion_is_drawn():
    drawn = train_step.draw_noise(jax.random.key(0), (4000, 1, 1, 1), 10)
    assert set(np.unique(drawn["t"])) == set(range(1, 11))
    assert abs(drawn["eps"].mean()) < 0.06 and 0.95 < drawn["eps"].std() < 1.05
    assert abs(np.corrcoef(drawn["t"], drawn["eps"][:, 0, 0, 0])[0, 1]) < 0.06
