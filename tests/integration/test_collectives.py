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
from benchmarks.throughput import Subject
from configs import folder
assert jax.device_count() == 4
config = folder.get_config("default,tiny")
config.data.image_size = 16
config.sampling.update(members=4, steps=3, member_chunk=2)
subject = Subject(config, 8, 3, "float32")
parameters = sum(leaf.size for leaf in jax.tree.leaves(subject.state.params))
with jax.set_mesh(subject.mesh):
    rows = {"train": subject.train(2), "segment": subject.segment(2)}
print(json.dumps({"parameters": parameters} | {k: v["collectives"] for k, v in rows.items()}))
"""


@pytest.fixture(scope="module")
def collectives():
    """Kind -> count and bytes of the programs "train" and "segment"; and the parameters."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_sampling_gathers_nothing_but_its_result(collectives):
    # 4 members of 8 cases of 16 x 16 pixels in float32, once, after all steps.
    assert collectives["segment"] == {"all-gather": {"count": 1, "bytes": 4 * 8 * 16 * 16 * 4}}


def test_training_reduces_the_gradients_once(collectives):
    reduced = collectives["train"]["all-reduce"]
    gradients = 4 * collectives["parameters"]
    # XLA may cut the sum in pieces, but their bytes are those of the gradients, and of little else.
    assert gradients <= reduced["bytes"] <= 1.05 * gradients
    others = sum(v["bytes"] for k, v in collectives["train"].items() if k != "all-reduce")
    assert others <= 0.05 * gradients
