"""Average, optimizer and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from medsegdiff_jax import train_state
from medsegdiff_jax.types import InputError


def test_average_of_a_constant_is_the_constant():
    params = {"w": jnp.full((3,), 1.7)}
    average = jax.tree.map(jnp.copy, params)
    for step in range(50):
        average = train_state.update_ema(average, params, jnp.asarray(step), 0.999)
    np.testing.assert_array_equal(average["w"], params["w"])


def test_average_forgets_its_start_early_and_keeps_the_decay_late():
    zero, one = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    early = train_state.update_ema(zero, one, jnp.asarray(0), 0.999)["w"]
    late = train_state.update_ema(zero, one, jnp.asarray(1_000_000), 0.999)["w"]
    np.testing.assert_allclose([early, late], [0.9, 0.001], rtol=1e-3)


def test_what_is_averaged_are_the_parameters_after_the_update():
    params = {"w": jnp.ones(3)}
    optimizer = optax.sgd(0.5)
    state = train_state.TrainState(jnp.asarray(7), params, params, optimizer.init(params))
    after = state.apply_gradients(optimizer, {"w": jnp.full(3, 2.0)}, ema_decay=0.0)
    np.testing.assert_array_equal(after.params["w"], 0.0)
    np.testing.assert_array_equal(after.ema_params["w"], 0.0)
    half = state.apply_gradients(optimizer, {"w": jnp.full(3, 2.0)}, ema_decay=0.25)
    np.testing.assert_allclose(half.ema_params["w"], 0.25)
    assert int(after.step) == 8


def optim(**fields):
    """The default optimizer fields, changed."""
    config = base.get_config().optim
    config.update(**fields)
    return config


def first_update(settings, params, gradients, updates=1, num_steps=100):
    """The n-th update of a fresh optimizer under a constant gradient."""
    optimizer = train_state.build_optimizer(settings, num_steps)
    state = optimizer.init(params)
    for _ in range(updates):
        change, state = optimizer.update(gradients, state, params)
    return change


def test_weight_decay_acts_on_kernels_only():
    params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "gaussian": {"width": jnp.ones(2)}}
    none = jax.tree.map(jnp.zeros_like, params)
    settings = optim(schedule="constant", warmup_steps=1, learning_rate=0.1, weight_decay=0.5)
    change = first_update(settings, params, none, updates=2)
    np.testing.assert_allclose(change["a"]["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_array_equal(change["a"]["bias"], 0.0)
    np.testing.assert_array_equal(change["gaussian"]["width"], 0.0)


def test_gradients_are_clipped_by_their_global_norm():
    # Adam forgets scale; a clipped giant must act like its direction, next to the same direction.
    params = {"a": {"kernel": jnp.zeros(2)}}
    settings = optim(schedule="constant", warmup_steps=0, weight_decay=0.0, grad_clip_norm=1.0)
    optimizer = train_state.build_optimizer(settings, 10)
    _, state = optimizer.update(
        {"a": {"kernel": jnp.array([3e4, 4e4])}}, optimizer.init(params), params
    )
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose(moments["a"]["kernel"], [0.06, 0.08], rtol=1e-4)


def test_learning_rate_warms_up_and_ends_at_zero():
    params, gradients = {"a": {"bias": jnp.zeros(1)}}, {"a": {"bias": jnp.ones(1)}}
    settings = optim(schedule="cosine", warmup_steps=10, learning_rate=1.0)
    rates = [
        -float(first_update(settings, params, gradients, n, num_steps=100)["a"]["bias"][0])
        for n in (1, 6, 11, 101)
    ]
    np.testing.assert_allclose(rates, [0.0, 0.5, 1.0, 0.0], atol=1e-4)


def test_a_constant_rate_needs_no_warm_up():
    params, gradients = {"a": {"bias": jnp.zeros(1)}}, {"a": {"bias": jnp.ones(1)}}
    settings = optim(schedule="constant", warmup_steps=0, learning_rate=0.5)
    for n in (1, 7):
        change = first_update(settings, params, gradients, n)
        np.testing.assert_allclose(change["a"]["bias"], -0.5, rtol=1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("grad_clip_norm", -1.0),
        ("schedule", "step"),
        ("warmup_steps", -1),
        ("weight_decay", -1.0),
        ("weight_decay", float("nan")),
    ],
)
def test_impossible_settings_name_their_field(field, value):
    with pytest.raises(InputError, match=f"optim.{field}"):
        train_state.build_optimizer(optim(**{field: value}), 10)
