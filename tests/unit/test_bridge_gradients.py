"""The parts of a network by their parameters, and their gradients beside each other."""

import jax
import numpy as np
import pytest

from benchmarks import bridge_gradients
from benchmarks.bridge_gradients import PARTS, WHOLE
from configs import base
from medsegdiff_jax import networks, train_state
from medsegdiff_jax.types import Task


def shapes(**changes):
    """Parameters of the tiny V2, as shapes."""
    model = base.get_config("default,tiny").model
    model.update(changes)
    network = networks.build(model, Task(("lesion",), (1,), True, 3), 16)
    return jax.eval_shape(
        lambda key: train_state.init_params(network, (16, 16, 3), key), jax.random.key(0)
    )


def test_every_part_of_the_network_is_found_and_what_is_relative_is_relative():
    gradients = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full(leaf.shape, 2.0 if "gaussian" in str(path) else -4.0), shapes()
    )
    found = bridge_gradients.relative(gradients)
    assert list(found) == list(PARTS)
    assert found.pop("U-SA Gaussian") == 0.5
    assert list(found.values()) == pytest.approx([1.0] * len(found))


def test_parts_that_a_model_does_not_have_are_left_out():
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape), shapes(anchor="none", semantic="none"))
    assert set(bridge_gradients.relative(ones)) == {"evidence", "condition UNet", WHOLE}
