"""Discs on noise, a model that is trained on them in seconds, and the commands as processes."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsegdiff_jax import export as exporting
from tests.runs import disc_config

ROOT = Path(__file__).parents[2]
SIDE = 24


@pytest.fixture(scope="session")
def disc_folder(tmp_path_factory):
    """images/ and masks/ of 24 colour images with one bright disc each; all three lists."""
    root = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "masks").mkdir()
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for index in range(24):
        y, x = rng.uniform(7, SIDE - 7, 2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 <= rng.uniform(4, 6.5) ** 2
        image = rng.normal(90, 15, (SIDE, SIDE, 3)) + 80 * disc[..., None]
        name = f"disc_{index:02d}.png"
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(root / "images" / name)
        Image.fromarray(disc.astype(np.uint8) * 255).save(root / "masks" / name)
    for split, cases in (("train", range(16)), ("val", range(16, 20)), ("test", range(20, 24))):
        (root / f"{split}.txt").write_text("".join(f"disc_{i:02d}\n" for i in cases))
    return root


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Prepared data of all tests."""
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture
def tiny_config(disc_folder, cache):
    """A config that trains the tiny model on the discs; each test gets its own copy."""
    config = disc_config("default,tiny", disc_folder, cache)
    config.validation.update(members=2, steps=2)
    config.sampling.update(members=2, steps=2)
    return config


@pytest.fixture
def unet_config(disc_folder, cache):
    """The same for the tiny UNet, which compiles in a quarter of the time."""
    return disc_config("unet,tiny", disc_folder, cache)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self):
        """Standard output of a command that must have worked."""
        assert self.code == 0, self.stderr
        return self.stdout

    @property
    def refusal(self):
        """The one error line of a command that must have refused its input."""
        assert self.code == 2, self.stderr
        assert "Traceback" not in self.stderr, self.stderr
        lines = [line for line in self.stderr.splitlines() if "error:" in line.lower()]
        assert len(lines) == 1 and lines[0].startswith("error: "), self.stderr
        return lines[0]


# Imports the libraries once (seconds) and forks for every command line, before JAX has any thread.
_SERVER = """
import json, os, resource, runpy, sys, traceback
from medsegdiff_jax import export, prediction, scoring, segmenter, trainer

def serve(script, flags, out, err, largest_file):
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    sys.argv = [script, *flags]
    try:
        runpy.run_path(script, run_name="__main__")
        return 0
    except SystemExit as error:
        return error.code or 0
    except BaseException:
        traceback.print_exc()
        return 1

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        code = serve(*json.loads(line))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """Runs a command of the repository: command("sample.py", "--seed=1", ...) -> Outcome.

    `largest_file` (bytes) bounds the files that it can write, as a full disk would.
    """
    folder = tmp_path_factory.mktemp("commands")
    environment = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        **os.environ,
        "PYTHONWARNINGS": "ignore",
    }
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    files = folder / "stdout", folder / "stderr"

    def run(script, *flags, largest_file=None):
        for path in files:
            path.unlink(missing_ok=True)
        order = [script, [str(flag) for flag in flags], *map(str, files), largest_file]
        server.stdin.write(json.dumps(order) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Outcome(code, *(path.read_text() for path in files))

    yield run
    server.stdin.close()
    server.wait(timeout=30)


TRAINING = (
    "--config=configs/folder.py:default,tiny",
    "--config.data.image_size=16",
    "--config.data.augment.probability=0.0",
    "--config.num_steps=60",
    "--config.batch_size=8",
    "--config.ema_decay=0.5",
    "--config.log_every_steps=20",
    "--config.optim.learning_rate=3e-3",
    "--config.optim.schedule=constant",
    "--config.optim.warmup_steps=1",
    "--config.validation.members=2",
    "--config.validation.steps=2",
    "--config.validation.batch_size=8",
    "--config.sampling.members=2",
    "--config.sampling.steps=2",
    "--config.sampling.batch_size=2",
)


@pytest.fixture(scope="session")
def train_flags(disc_folder, cache):
    """Flags of train.py for a tiny model of the discs."""
    return (
        *TRAINING,
        f"--config.data.path={disc_folder}",
        f"--config.data.cache_dir={cache}",
    )


@pytest.fixture(scope="session")
def train(command, train_flags):
    """Runs train.py on the discs: train(workdir, ...) -> Outcome."""

    def run(workdir, *flags, **limits):
        return command("train.py", *train_flags, f"--workdir={workdir}", *flags, **limits)

    return run


@pytest.fixture(scope="session")
def training(train, tmp_path_factory):
    """Workdir of a model that has begun to see the discs, and what train.py said."""
    workdir = tmp_path_factory.mktemp("training") / "run"
    outcome = train(workdir)
    assert outcome.code == 0, outcome.stderr
    return workdir, outcome


@pytest.fixture(scope="session")
def trained(training):
    """That workdir; not to be changed."""
    return training[0]


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """The same model as an exported folder; not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "model"
    exporting.export(trained, path)
    return path
