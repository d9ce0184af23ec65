"""The loss against hand-computed numbers."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from medsegdiff_jax import losses, process
from medsegdiff_jax.types import Condition, InputError, Task

BINARY = Task(("lesion",), (1,), True, 3)
THREE = Task(("a", "b"), (1, 2), True, 3)


def build_process(prediction="eps", task=BINARY):
    """A process in the given parametrisation."""
    config = base.get_config("paper").diffusion
    config.prediction = prediction
    return process.build(config, task.one_hot)


def condition(logits):
    """A condition with these logits alone."""
    return Condition(anchor=None, embedding=jnp.zeros((1,)), logits=logits)


def test_dice_of_a_half_right_mask():
    # 4 pixels predicted, 4 true, 2 in common: Dice = 1/2; smoothing of one pixel: 5/9.
    mask = jnp.zeros((1, 4, 4, 1)).at[0, 0].set(1.0)
    logits = jnp.full((1, 4, 4, 1), -50.0).at[0, :2, :2].set(50.0)
    np.testing.assert_allclose(losses.soft_dice(logits, mask, False), [1 - 5 / 9], rtol=1e-5)


def test_dice_leaves_the_background_channel_out():
    labels = np.zeros((1, 4, 4), int)
    labels[0, :2] = 1
    mask = jnp.asarray(np.eye(3)[labels])
    perfect_but_no_b = jnp.log(mask + 1e-30)
    # Class a is perfect; class b is empty in both, which smoothing counts as right.
    np.testing.assert_allclose(losses.soft_dice(perfect_but_no_b, mask, True), [0.0], atol=1e-5)
    all_background = jnp.zeros_like(mask).at[..., 0].set(50.0)
    np.testing.assert_allclose(
        losses.soft_dice(all_background, mask, True), [0.5 * (1 - 1 / 9)], rtol=1e-5
    )


def test_cross_entropy_of_ignorance_is_log_of_the_number_of_classes():
    mask = jnp.zeros((2, 4, 4, 3)).at[..., 0].set(1.0)
    flat = jnp.zeros_like(mask)
    np.testing.assert_allclose(losses.cross_entropy(flat, mask, True), np.log(3.0), rtol=1e-6)
    np.testing.assert_allclose(losses.cross_entropy(flat, mask, False), np.log(2.0), rtol=1e-6)


def test_the_gate_opens_per_example_where_t_is_a_multiple_of_alpha():
    objective = losses.Objective(condition_every=5, condition_ce_weight=10.0)
    mask = jnp.zeros((3, 4, 4, 1))
    eps = jnp.ones((3, 4, 4, 1))
    output = eps + 2.0  # squared error 4
    t = jnp.array([5, 6, 10])
    terms = objective(build_process(), output, condition(jnp.zeros_like(mask)), mask, eps, t)
    # Condition: Dice term 1 - 1 / (16 / 2 + 1), cross-entropy log 2.
    on_condition = (1 - 1 / 9) + 10 * np.log(2.0)
    expected = [4 + on_condition, 4.0, 4 + on_condition]
    np.testing.assert_allclose(terms["total"], expected, rtol=1e-5)


def test_x0_prediction_is_scored_on_its_logits():
    objective = losses.Objective(condition_every=1, condition_ce_weight=0.0)
    mask = jnp.zeros((1, 4, 4, 1)).at[0, :2].set(1.0)
    right = jnp.where(mask > 0, 50.0, -50.0)
    args = (build_process("x0"), right, condition(right), mask, jnp.zeros_like(mask))
    np.testing.assert_allclose(objective(*args, jnp.array([7]))["total"], [0.0], atol=1e-5)


def test_v_target_is_alpha_eps_minus_sigma_x0():
    objective = losses.Objective(condition_every=1000, condition_ce_weight=0.0)
    diffusion = build_process("v")
    mask, eps, t = jnp.ones((1, 4, 4, 1)), jnp.full((1, 4, 4, 1), 0.5), jnp.array([300])
    v = diffusion.schedule.alpha[300] * 0.5 - diffusion.schedule.sigma[300] * 1.0
    terms = objective(diffusion, jnp.full_like(mask, v), condition(mask), mask, eps, t)
    np.testing.assert_allclose(terms["denoising_mse"], [0.0], atol=1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [("condition_every", -1), ("condition_ce_weight", -1.0), ("condition_ce_weight", np.nan)],
)
def test_impossible_constants_name_their_field(field, value):
    config = base.get_config().loss
    config[field] = value
    with pytest.raises(InputError, match=f"loss.{field}"):
        losses.build(config)
