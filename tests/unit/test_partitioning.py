"""What the compiler is told."""

import types

import jax
import numpy as np
import pytest

from medsegdiff_jax import partitioning


@pytest.fixture(autouse=True)
def forget():
    """Every test asks the compiler anew."""
    partitioning._options_of_cpus.cache_clear()
    yield
    partitioning._options_of_cpus.cache_clear()


@pytest.fixture
def mesh():
    return partitioning.training_mesh(1, jax.devices()[:1])


def test_this_version_of_xla_knows_the_option(mesh):
    options = partitioning.compiler_options(mesh)
    assert options == partitioning._ON_CPU
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_a_version_that_does_not_know_the_option_does_without(monkeypatch, mesh):
    monkeypatch.setattr(partitioning, "_ON_CPU", {"xla_cpu_of_another_version": "1"})
    assert partitioning.compiler_options(mesh) == {}


def test_the_devices_of_the_mesh_count_not_those_at_hand():
    chip = types.SimpleNamespace(platform="tpu")
    mesh = types.SimpleNamespace(devices=np.array([[chip]]))
    assert partitioning.compiler_options(mesh) == {}
