"""Two processes that work together on this machine, as two hosts would."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medsegdiff_jax.segmenter import Segmenter
from tests.runs import logged

ROOT = Path(__file__).parents[2]
STEPS = 6
FLAGS = (f"--config.num_steps={STEPS}", "--config.log_every_steps=1", "--config.eval_every_steps=3")


def free_port():
    """A port that nobody listens on at the moment."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def losses(workdir):
    """The scalars of each line of metrics.jsonl but the speed."""
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in logged(workdir)]


def run_together(commands):
    """Starts processes of Python with these arguments; returns what they said."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        outcomes = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, stderr) in zip(processes, outcomes, strict=True):
        assert process.returncode == 0, stderr
    return outcomes


def test_two_processes_train_as_one_and_one_goes_on_alone(train, train_flags, tmp_path):
    assert train(tmp_path / "one", *FLAGS).code == 0
    together = ("train.py", *train_flags, f"--workdir={tmp_path / 'two'}", *FLAGS)
    join = (f"--coordinator=localhost:{free_port()}", "--num_processes=2")
    outcomes = run_together([(*together, *join, f"--process_id={i}") for i in range(2)])
    assert "step 6/6" in outcomes[0][1] and "step" not in outcomes[1][1]
    alone, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    steps = [1, 2, 3, 3, 4, 5, 6, 6]  # with validation at 3 and 6
    assert [row["step"] for row in alone] == [row["step"] for row in two] == steps
    for ours, theirs in zip(alone, two, strict=True):
        # Sums in another order, which Adam's division by small second moments makes grow.
        tolerance = 1e-4 if ours["step"] == 1 else 5e-3
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (ours, name)
    # The checkpoint of two is restored by one.
    done = train(tmp_path / "two", *FLAGS, "--config.num_steps=8")
    assert done.code == 0 and "resuming at step 6" in done.stderr


CHECKING = """
import sys
from pathlib import Path
from medsegdiff_jax import hosts, workdir
from medsegdiff_jax.types import InputError
coordinator, process, folder = sys.argv[1:]
hosts.initialize("on", coordinator, 2, int(process))

def check(folder, config, fingerprint="0", start=""):
    try:
        metadata = {"version": "1", "config": config, "fingerprint": fingerprint}
        workdir.check_hosts(Path(folder), metadata, start)
        print("said: the same")
    except InputError as error:
        print("said:", error)

check(folder, {"data": {"path": process}, "seed": 1})
check(folder, {"data": {"path": process}, "seed": int(process)})
check(folder, {"seed": 1}, process)
check(folder, {"seed": 1}, start=process)
check(f"{folder}/{process}", {"seed": 1})
check(folder, {"seed": 1})
"""


def test_processes_that_do_not_belong_together_say_so(tmp_path):
    for process in "01":
        (tmp_path / process).mkdir()
    shared = ("-c", CHECKING, f"localhost:{free_port()}")
    outcomes = run_together([(*shared, process, str(tmp_path)) for process in "01"])
    different = "the processes have other versions, configs, data or first weights than each other"
    for process, (said, _) in zip("01", outcomes, strict=True):
        lines = [line.partition("said: ")[2] for line in said.splitlines() if "said: " in line]
        first, config, data, start, disk, last = lines
        assert first == last == "the same"
        assert all(one.startswith(different) for one in (config, data, start))
        assert disk.startswith(f"{tmp_path / process}: not every process sees what process 0 write")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["0", "1"]  # no mark is left


SEGMENTING = """
import sys
import numpy as np
from medsegdiff_jax import hosts
coordinator, process, checkpoint, folder = sys.argv[1:]
hosts.initialize("on", coordinator, 2, int(process))
from medsegdiff_jax.segmenter import Segmenter
images = np.load(f"{folder}/images_{process}.npy")
np.save(f"{folder}/found_{process}.npy", Segmenter.load(checkpoint)(images).probability)
"""


def test_each_of_two_processes_segments_images_of_its_own(trained, tmp_path):
    rng, segmenter = np.random.default_rng(0), Segmenter.load(trained)
    given = [rng.integers(0, 256, (count, 20, 28, 3), np.uint8) for count in (1, 3)]
    for process, images in enumerate(given):
        np.save(tmp_path / f"images_{process}.npy", images)
    shared = ("-c", SEGMENTING, f"localhost:{free_port()}")
    run_together([(*shared, str(process), str(trained), str(tmp_path)) for process in range(2)])
    for process, images in enumerate(given):
        found = np.load(tmp_path / f"found_{process}.npy")
        np.testing.assert_allclose(found, segmenter(images).probability, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--distributed=maybe",), "--distributed: 'maybe'"),
        (("--coordinator=localhost:1",), "belong together"),
        (("--distributed=on",), "--distributed=on: "),
    ],
)
def test_wrong_flags_are_refused(train, tmp_path, flags, message):
    assert message in train(tmp_path / "run", *flags).refusal
    assert not (tmp_path / "run").exists()
