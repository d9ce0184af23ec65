"""What `process.build` accepts and refuses."""

import types

import numpy as np
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


@pytest.mark.parametrize("one_hot", [True, False])
def test_exclusive_channels_sum_to_one_whoever_predicts_them(one_hot):
    p = process.build(config(prediction="v"), one_hot)
    x_0 = 0.3 * np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -0.2, -0.2]], np.float32)
    alone = (x_0 / 0.3 + 1) / 2
    summed = np.array([[1 / 3] * 3, [0.5, 0.5, 0], [0, 0.5, 0.5]])
    found = p.x0_to_mask(x_0)
    np.testing.assert_allclose(found, summed if one_hot else alone, atol=1e-6)


def test_build():
    p = process.build(config(), EXCLUSIVE.one_hot)
    assert (p.schedule.num_steps, p.schedule.alpha[-1]) == (50, 0.0)
    assert (p.input_scale, p.prediction, p.one_hot) == (0.3, "x0", True)
    assert not process.build(config(), BINARY.one_hot).one_hot
    assert process.build(config(zero_terminal_snr=False), BINARY.one_hot).schedule.alpha[-1] > 0


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
    with pytest.raises(InputError, match=rf"^config field diffusion\.{field}: ") as caught:
        process.build(config(**changes), BINARY.one_hot)
    assert "\n" not in str(caught.value)


def test_eps_prediction_without_zero_terminal_snr_is_allowed():
    p = process.build(config(prediction="eps", zero_terminal_snr=False), BINARY.one_hot)
    assert p.prediction == "eps"


def test_logits_have_no_regression_target():
    with pytest.raises(ValueError, match="no regression target"):
        process.build(config(), BINARY.one_hot).target(0.0, 0.0, 1)
