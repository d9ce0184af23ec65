"""What a signal leaves of a training run."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from medsegdiff_jax import checkpoint, evaluator, trainer
from tests.runs import logged

ROOT = Path(__file__).parents[2]


def test_training_may_run_beside_the_main_thread():
    def run():
        with trainer.termination() as terminated:
            found.append(terminated())

    found, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False] and signal.getsignal(signal.SIGTERM) is before


def test_sigterm_waits_for_the_last_checkpoint(unet_config, tmp_path, monkeypatch):
    leave = checkpoint.Checkpoints.__exit__

    def interrupted(checkpoints, *error):
        os.kill(os.getpid(), signal.SIGTERM)
        leave(checkpoints, *error)

    monkeypatch.setattr(checkpoint.Checkpoints, "__exit__", interrupted)
    trainer.train(unet_config, str(tmp_path))
    assert "step 3 " in checkpoint.load_model(tmp_path).description


def test_sigterm_before_a_validation_saves_without_it(unet_config, tmp_path, monkeypatch):
    unet_config.update(num_steps=6, eval_every_steps=2)
    compiled, validated = trainer.compile_train_step, []

    def terminating(*arguments):
        train_step = compiled(*arguments)

        def step(state, batch):
            state, terms = train_step(state, batch)
            if int(state.step) == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            return state, terms

        return step

    def run(validation, params, interrupted):
        validated.append(interrupted())
        return whole(validation, params, interrupted)

    whole = evaluator.Validation.run
    monkeypatch.setattr(evaluator.Validation, "run", run)
    monkeypatch.setattr(trainer, "compile_train_step", terminating)
    assert int(trainer.train(unet_config, str(tmp_path)).step) == 4
    assert validated == [False]  # that of step 2
    assert "step 2 " in checkpoint.load_model(tmp_path).description  # 4 has no Dice
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "4"]


@pytest.mark.parametrize("num_steps", [2, 6])
def test_sigterm_ends_a_validation_but_the_last(
    unet_config, tmp_path, monkeypatch, caplog, num_steps
):
    unet_config.update(num_steps=num_steps, eval_every_steps=2)
    unet_config.validation.batch_size = 1
    batches = evaluator.Validation._batches

    def interrupted(validation):
        found = batches(validation)
        yield next(found)
        os.kill(os.getpid(), signal.SIGTERM)
        yield from found

    monkeypatch.setattr(evaluator.Validation, "_batches", interrupted)
    with caplog.at_level("INFO", logger="medsegdiff_jax"):
        assert int(trainer.train(unet_config, str(tmp_path)).step) == 2
    said = "not validated" if num_steps > 2 else "validation Dice"
    assert f"step 2 ({said}" in checkpoint.load_model(tmp_path).description
    assert ("step 2  validation left off" in caplog.messages) == (num_steps > 2)
    assert any("validation/dice" in row for row in logged(tmp_path)) == (num_steps == 2)


def test_what_a_killed_run_had_half_written_is_removed_by_the_next(unet_config, tmp_path):
    unet_config.num_steps = 2
    trainer.train(unet_config, str(tmp_path))
    half = tmp_path / "checkpoints" / "37.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "2", half)
    assert "step 2 " in checkpoint.load_model(tmp_path).description
    assert half.exists()  # it may be that of a run which is still going on
    unet_config.num_steps = 3
    trainer.train(unet_config, str(tmp_path))
    assert not half.exists()


def command(config, workdir, *flags):
    """Command line of train.py for the tiny UNet."""
    return [
        sys.executable,
        "train.py",
        "--config=configs/folder.py:unet,tiny",
        f"--config.data.path={config.data.path}",
        f"--config.data.cache_dir={config.data.cache_dir}",
        "--config.data.image_size=16",
        "--config.batch_size=8",
        "--config.log_every_steps=1",
        "--config.validation.batch_size=8",
        f"--workdir={workdir}",
        *flags,
    ]


def test_sigterm_saves_and_exits_with_zero(unet_config, tmp_path):
    process = subprocess.Popen(
        command(unet_config, tmp_path, "--config.num_steps=100000"),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "metrics.jsonl").exists() or not logged(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "SIGTERM: saved step" in stderr
    (step,) = (int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert step == logged(tmp_path)[-1]["step"]
