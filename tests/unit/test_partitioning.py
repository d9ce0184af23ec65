"""What the compiler is told."""

import jax
import pytest

from medsegdiff_jax import partitioning


@pytest.fixture(autouse=True)
def forget():
    """Every test asks the compiler anew."""
    partitioning.compiler_options.cache_clear()
    yield
    partitioning.compiler_options.cache_clear()


def test_this_version_of_xla_knows_the_option():
    options = partitioning.compiler_options()
    assert options == partitioning._ON_CPU
    assert jax.jit(lambda x: x + 1, compiler_options=options)(1) == 2


def test_a_version_that_does_not_know_the_option_does_without(monkeypatch):
    monkeypatch.setattr(partitioning, "_ON_CPU", {"xla_cpu_of_another_version": "1"})
    assert partitioning.compiler_options() == {}


def test_other_backends_are_told_nothing(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert partitioning.compiler_options() == {}
