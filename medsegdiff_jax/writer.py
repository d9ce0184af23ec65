"""Where training tells what it does: metrics.jsonl and its curves, TensorBoard, and the terminal.

The method names are clu's, whose own writers need TensorFlow.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import tensorboardX
import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from medsegdiff_jax import atomic, plots
from medsegdiff_jax.types import InputError

_log = logging.getLogger("medsegdiff_jax")


class MetricWriter:
    """Scalars to metrics.jsonl and TensorBoard, images to TensorBoard."""

    def __init__(self, workdir: str | os.PathLike, start_step: int):
        """Opens both in `workdir`; lines after `start_step`, of a run cut short, are dropped."""
        self._path = Path(workdir) / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _is_until(line, start_step)]
            atomic.write_text(self._path, "".join(line + "\n" for line in kept))
        self._file = self._path.open("a")
        self._events = tensorboardX.SummaryWriter(
            str(workdir), purge_step=start_step + 1 if start_step else None
        )

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line {"step", name: value, ...} and one TensorBoard point per scalar."""
        values = {name: float(value) for name, value in scalars.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Each image: [H, W, 3] uint8."""
        for name, image in images.items():
            self._events.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Everything written so far is on disk afterwards, and drawn in learning_curve.png.

        A picture that cannot be drawn is no reason to end a training.
        """
        self._file.flush()
        self._events.flush()
        try:
            plots.write_learning_curve(self._path, self._path.with_name("learning_curve.png"))
        except (InputError, OSError) as error:
            _log.warning("no learning curve: %s", error)

    def close(self) -> None:
        """Flushes and closes."""
        self._file.close()
        self._events.close()


class NoWriter:
    """What the processes besides the first write: nothing."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Does nothing."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class Progress:
    """Steps done, images/s and time left: a bar on a terminal, plain log lines otherwise."""

    def __init__(self, start: int, total: int, batch_size: int):
        """Counts from step `start` to `total`, `batch_size` images each."""
        self._total, self._batch_size = total, batch_size
        self._last_step, self._last_time, self._compiled = start, time.monotonic(), False
        self._bar, self._terminal = None, ExitStack()
        if sys.stderr.isatty() and _log.isEnabledFor(logging.INFO):
            # Log lines go above the bar instead of through it.
            self._terminal.enter_context(logging_redirect_tqdm([_log]))
            self._bar = tqdm.tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def step(self) -> None:
        """One more step was dispatched; the clock starts with the first, once compiled."""
        if not self._compiled:
            self._compiled, self._last_time = True, time.monotonic()
        if self._bar is not None:
            self._bar.update()

    def report(self, step: int, scalars: Mapping[str, float]) -> float:
        """Shows `scalars` at `step`; returns images/s since the last report."""
        now = time.monotonic()
        rate = (step - self._last_step) * self._batch_size / max(now - self._last_time, 1e-9)
        self._last_step, self._last_time = step, now
        text = "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:.1f} img/s  {text}")
        else:
            left = (self._total - step) * self._batch_size / max(rate, 1e-9)
            _log.info(
                "step %d/%d  %s  %.1f img/s  %s left", step, self._total, text, rate, _clock(left)
            )
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time in the block is not training time."""
        began = time.monotonic()
        yield
        self._last_time += time.monotonic() - began

    def close(self) -> None:
        """Leaves the terminal tidy."""
        if self._bar is not None:
            self._bar.close()
        self._terminal.close()


def _is_until(line: str, step: int) -> bool:
    """Whether a line of the log is of `step` or before; one that a crash cut short is not."""
    try:
        return json.loads(line)["step"] <= step
    except ValueError:
        return False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
