"""Loss terms between two reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsegdiff_jax.trainer import LossWindow


def terms(step):
    """Of three examples; the means are the step and half of it."""
    total = jnp.array([step - 1, step, step + 1], jnp.float32)
    return {"total": total, "condition_dice": total / 2, "grad_norm": jnp.float32(10 * step)}


def test_means_are_those_since_the_last_report():
    window = LossWindow()
    for step in (1, 2, 3):
        window.add(step, terms(step))
    window.check()  # a checkpoint in between changes nothing
    window.add(4, terms(4))
    first = {"loss/total": 2.5, "loss/condition_dice": 1.25, "grad_norm": 25.0}
    assert window.empty() == first
    window.add(5, terms(5))
    assert window.empty() == {"loss/total": 5.0, "loss/condition_dice": 2.5, "grad_norm": 50.0}


def test_the_first_step_that_went_wrong_is_named():
    window = LossWindow()
    for step in (7, 8, 9):
        bad = {"grad_norm": jnp.float32(np.nan)} if step > 7 else {}
        window.add(step, terms(step) | bad)
    with pytest.raises(FloatingPointError, match="the gradient is not finite at step 8"):
        window.empty()


def test_no_more_than_three_steps_are_under_way(monkeypatch):
    """Else the batches of all steps up to the report lie on the devices."""
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", lambda found: waited.append(found[0]))
    window = LossWindow()
    for step in range(1, 7):
        window.add(step, terms(step))
    assert waited == [1, 2, 3, 4]
