"""What training writes: a log that survives a cut and a resume, and lines where no bar can be."""

import json
import logging

import numpy as np
import pytest
from PIL import Image

from medsegdiff_jax import writer
from medsegdiff_jax.writer import MetricWriter, Progress


def steps(workdir):
    """Step of every line of metrics.jsonl."""
    return [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").open()]


def test_lines_after_the_restored_step_are_dropped(tmp_path):
    log = MetricWriter(tmp_path, 0)
    for step in (10, 20, 30):
        log.write_scalars(step, {"loss/total": np.float32(1 / step)})
    log.write_images(30, {"sheet": np.zeros((8, 8, 3), np.uint8)})
    log.close()
    assert steps(tmp_path) == [10, 20, 30]
    resumed = MetricWriter(tmp_path, 20)
    assert steps(tmp_path) == [10, 20]
    resumed.write_scalars(25, {"loss/total": 0.5})
    assert not (tmp_path / "learning_curve.png").exists()
    resumed.flush()
    with Image.open(tmp_path / "learning_curve.png") as curve:
        assert np.asarray(curve).std() > 5
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert rows[-1] == {"step": 25, "loss/total": 0.5}
    assert rows[0] == {"step": 10, "loss/total": pytest.approx(0.1)}
    resumed.close()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) >= 1
    anew = MetricWriter(tmp_path, 0)
    anew.close()
    assert steps(tmp_path) == []


def test_a_line_that_a_crash_cut_short_does_not_stop_a_resume(tmp_path):
    whole = '{"step": 10, "loss/total": 1.0}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 20, "lo')
    MetricWriter(tmp_path, 20).close()
    assert (tmp_path / "metrics.jsonl").read_text() == whole


def test_a_log_that_cannot_be_drawn_ends_no_training(tmp_path, caplog):
    log = MetricWriter(tmp_path, 0)
    log.write_scalars(1, {"loss/total": 1.0})
    (tmp_path / "metrics.jsonl").unlink()
    with caplog.at_level("WARNING", logger="medsegdiff_jax"):
        log.flush()
    assert "no learning curve: " in caplog.text and "metrics.jsonl: cannot be read" in caplog.text
    log.close()


def test_lines_are_on_disk_before_the_writer_is_closed(tmp_path):
    log = MetricWriter(tmp_path, 0)
    log.write_scalars(1, {"a": 1.0})
    assert steps(tmp_path) == [1]
    log.close()


def test_without_a_terminal_progress_is_a_line_with_rate_and_time_left(monkeypatch, caplog):
    now = [100.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
    progress = Progress(start=10, total=110, batch_size=4)
    now[0] += 20  # compilation
    for _ in range(10):
        progress.step()
    now[0] += 3
    with progress.paused():
        now[0] += 50  # validation
    now[0] += 2
    with caplog.at_level(logging.INFO, logger="medsegdiff_jax"):
        rate = progress.report(20, {"loss": 0.25})
    progress.close()
    assert rate == pytest.approx(10 * 4 / 5)
    # 90 steps of half a second.
    assert caplog.messages == ["step 20/110  loss 0.25  8.0 img/s  0:00:45 left"]
