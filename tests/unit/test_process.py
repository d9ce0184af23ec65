"""What `process.build` accepts and refuses."""

import types

import pytest

from medsegdiff_jax import process
from medsegdiff_jax.types import InputError, Task

BINARY = Task(("lesion",), (1,), True, 3)
EXCLUSIVE = Task(("a", "b"), (1, 2), True, 1)


def config(**changes):
    fields = {
        "num_timesteps": 50,
        "schedule": "cosine",
        "zero_terminal_snr": True,
        "input_scale": 0.3,
        "prediction": "x0",
    }
    return types.SimpleNamespace(**(fields | changes))


def test_build():
    p = process.build(config(), EXCLUSIVE)
    assert (p.schedule.num_steps, p.schedule.alpha[-1]) == (50, 0.0)
    assert (p.input_scale, p.prediction, p.one_hot) == (0.3, "x0", True)
    assert not process.build(config(), BINARY).one_hot
    assert process.build(config(zero_terminal_snr=False), BINARY).schedule.alpha[-1] > 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prediction": "score"}, "prediction"),
        ({"prediction": "eps"}, "zero_terminal_snr"),
        ({"input_scale": 0.0}, "input_scale"),
        ({"input_scale": float("nan")}, "input_scale"),
        ({"schedule": "sigmoid"}, "schedule"),
        ({"num_timesteps": 0}, "num_timesteps"),
    ],
)
def test_refusals_name_the_field(changes, field):
    with pytest.raises(InputError, match=rf"^diffusion\.{field}: ") as caught:
        process.build(config(**changes), BINARY)
    assert "\n" not in str(caught.value)


def test_eps_prediction_without_zero_terminal_snr_is_allowed():
    p = process.build(config(prediction="eps", zero_terminal_snr=False), BINARY)
    assert p.prediction == "eps"


def test_logits_have_no_regression_target():
    with pytest.raises(ValueError, match="no regression target"):
        process.build(config(), BINARY).target(0.0, 0.0, 1)
