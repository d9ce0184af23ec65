"""The order of devices, and what the compiler is told about them."""

import dataclasses
import random
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


@dataclasses.dataclass(frozen=True)
class Chip:
    """One of a slice."""

    id: int
    process_index: int
    platform: str = "tpu"


def test_all_meshes_have_one_order_process_by_process():
    """As libtpu numbers 16 chips of four hosts, each with a square of 2 x 2."""
    chips = [Chip(4 * y + x, y // 2 * 2 + x // 2) for y in range(4) for x in range(4)]
    random.Random(0).shuffle(chips)
    meshes = [partitioning.training_mesh(shards, chips) for shards in (1, 2, 8)]
    meshes += [partitioning.sampling_mesh(cases, chips) for cases in (1, 8, 16)]
    assert [mesh.shape["model"] for mesh in meshes] == [1, 2, 8, 16, 2, 1]
    orders = {tuple(mesh.devices.ravel()) for mesh in meshes}
    (order,) = orders
    assert [chip.process_index for chip in order] == [n for n in range(4) for _ in range(4)]
    assert set(order) == set(chips)


@pytest.mark.parametrize(
    ("cases", "devices", "batch"),
    [(4, 1, 4), (4, 6, 6), (7, 8, 8), (9, 8, 16), (16, 12, 24), (3, 8, 4), (1, 8, 1)],
)
def test_a_batch_grows_until_most_devices_share_it_evenly(cases, devices, batch):
    assert partitioning.even_batch(cases, devices) == batch


def test_large_parameters_are_split_along_their_longest_axis_that_can_be():
    chips = [Chip(i, 0) for i in range(4)]
    tree = {
        "whole": (8, 8),  # too small to be worth it
        "last": (3, 3, 64, 128),
        "first": (256, 64),
        "not the longest": (999, 64),
        "none": (33, 65),
    }
    tree = {name: np.empty(shape, np.float32) for name, shape in tree.items()}
    found = partitioning.state_shardings(partitioning.training_mesh(4, chips), tree)
    assert {name: tuple(one.spec) for name, one in found.items()} == {
        "whole": (),
        "last": (None, None, None, "model"),
        "first": ("model",),
        "not the longest": (None, "model"),
        "none": (),
    }


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
