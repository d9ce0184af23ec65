"""Getting things ahead of their use."""

import threading

import pytest

from medsegdiff_jax.progress import ahead


def test_the_next_thing_is_got_while_the_current_one_is_used():
    reached = threading.Event()

    def things():
        yield 1
        reached.set()
        yield 2

    items = ahead(things())
    assert next(items) == 1
    assert reached.wait(timeout=10)
    assert list(items) == [2]


def test_an_error_comes_in_its_turn():
    def things():
        yield 1
        raise ValueError("two")

    items = ahead(things())
    assert next(items) == 1
    with pytest.raises(ValueError, match="two"):
        next(items)
