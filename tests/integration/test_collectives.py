"""What devices say to each other, read from compiled programs for four faked devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json
import jax
from benchmarks import programs
from configs import folder
assert jax.device_count() == 4
config = folder.get_config("default,tiny")
config.data.image_size = 16
config.sampling.update(members=4, steps=3, member_chunk=2)

def said(program):
    return programs.collectives(program.lower().compile().as_text())

step = programs.training_step(config, 8, jax.devices())
parameters = sum(leaf.size for leaf in jax.tree.leaves(step.arguments[0].params))
rows = {"train": said(step)}
rows |= {name: said(programs.ensemble(config, batch, jax.devices()))
         for name, batch in (("segment", 8), ("alone", 1))}
config.model_shards = 4
rows["sharded"] = said(programs.training_step(config, 8, jax.devices()))
print(json.dumps({"parameters": parameters, **rows}))
"""


@pytest.fixture(scope="module")
def collectives():
    """Kind -> count and bytes of the programs "train", "segment", "sharded" (training state on
    four devices) and "alone" (a single case); and the parameters."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_sampling_gathers_nothing_but_its_result(collectives):
    # 4 members and the condition model's own answer, of 8 cases of 16 x 16 pixels in float32; once.
    gathered = {"count": 2, "bytes": (4 + 1) * 8 * 16 * 16 * 4}
    assert collectives["segment"] == {"all-gather": gathered}


def test_training_reduces_the_gradients_once(collectives):
    reduced = collectives["train"]["all-reduce"]
    gradients = 4 * collectives["parameters"]
    # XLA may cut the sum in pieces, but their bytes are those of the gradients, and of little else.
    assert gradients <= reduced["bytes"] <= 1.05 * gradients
    others = sum(v["bytes"] for k, v in collectives["train"].items() if k != "all-reduce")
    assert others <= 0.05 * gradients


def test_sharded_training_gathers_parameters_and_reduces_gradients_once(collectives):
    found, parameters = collectives["sharded"], 4 * collectives["parameters"]
    assert found["all-gather"]["bytes"] <= 1.05 * parameters
    # On CPU, XLA adds whole gradients up and then drops what a device does not hold.
    reduced = sum(
        found.get(kind, {"bytes": 0})["bytes"] for kind in ("all-reduce", "reduce-scatter")
    )
    assert found["all-gather"]["bytes"] >= 0.5 * parameters and reduced <= 1.05 * parameters
    others = {"all-gather", "all-reduce", "reduce-scatter"}
    assert sum(v["bytes"] for k, v in found.items() if k not in others) <= 0.05 * parameters


def test_devices_share_the_members_of_a_single_case(collectives):
    assert collectives["alone"] == {"all-gather": {"count": 1, "bytes": 4 * 16 * 16 * 4}}
