"""A folder of discs on noise, and a config small enough to train on it in seconds."""

import numpy as np
import pytest
from PIL import Image

from configs import folder

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


@pytest.fixture
def tiny_config(disc_folder, tmp_path_factory):
    """A config that trains the tiny model on the discs; each test gets its own copy."""
    config = folder.get_config("default,tiny")
    config.data.path = str(disc_folder)
    config.data.cache_dir = str(tmp_path_factory.getbasetemp() / "cache")
    config.data.image_size = 16
    config.num_steps = 3
    config.batch_size = 8
    config.log_every_steps = 1
    config.eval_every_steps = 3
    config.checkpoint_every_steps = 100
    config.optim.schedule = "constant"
    config.optim.warmup_steps = 1
    config.validation.update(members=2, steps=2, batch_size=8)
    config.sampling.update(members=2, steps=2, batch_size=8)
    return config
