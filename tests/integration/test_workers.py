"""Processes that read training examples."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
READING = """
import itertools, multiprocessing, os, signal, sys
import numpy as np
from absl import flags
from configs import folder
from medsegdiff_jax import input_pipeline

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    data = folder.get_config("default,tiny").data
    data.path, data.cache_dir, data.image_size = *sys.argv[1:], 16
    dataset = input_pipeline.load(data)

    def batches(workers):
        data.update(workers=workers, prefetch=2)
        return input_pipeline.train_batches(dataset, data, batch_size=2, seed=0, start_step=3)

    alone = list(itertools.islice(batches(0), 40))
    shared = batches(2)
    found = [next(shared), next(shared)]  # one from each, so both are ready
    children = multiprocessing.active_children()
    for child in children:
        os.kill(child.pid, signal.SIGTERM)
    found += itertools.islice(shared, 38)
    for ours, theirs in zip(alone, found, strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    print(len(children), "workers")
"""


def test_workers_give_the_same_batches_and_outlive_sigterm(disc_folder, tmp_path):
    """A signal to a whole job reaches them, too; the trainer still needs batches to save."""
    (tmp_path / "reading.py").write_text(READING)  # workers import the main module
    done = subprocess.run(
        [sys.executable, str(tmp_path / "reading.py"), str(disc_folder), str(tmp_path / "cache")],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "2 workers"
