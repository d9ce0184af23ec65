"""Long work over many things: its progress, and getting the next one meanwhile."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

LOG_SECONDS = 20  # between lines where there is no terminal

_log = logging.getLogger("medsegdiff_jax")

T = TypeVar("T")


def progress(items: Iterable[T], total: int, label: str, unit: str = "case") -> Iterator[T]:
    """The items, with a bar on a terminal and a log line now and then otherwise."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=label, unit=unit)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item  # returns when the item has been dealt with
        now = time.monotonic()
        if now - last >= LOG_SECONDS or done == total:
            rate = (now - start) / done
            _log.info("%s  %d/%d  %.3g s per %s", label, done, total, rate, unit)
            last = now


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The items; a thread gets the next one while the current one is dealt with."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, end)
        while (item := following.result()) is not end:
            following = thread.submit(next, items, end)
            yield item
