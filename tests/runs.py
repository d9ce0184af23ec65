"""What tests of training share."""

import json

from configs import folder


def logged(workdir):
    """Rows of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def disc_config(name, disc_folder, cache):
    """Three steps of a model on the discs."""
    config = folder.get_config(name)
    config.data.path = str(disc_folder)
    config.data.cache_dir = str(cache)
    config.data.image_size = 16
    config.num_steps = 3
    config.batch_size = 8
    config.log_every_steps = 1
    config.eval_every_steps = 3
    config.checkpoint_every_steps = 100
    config.optim.update(learning_rate=1e-3, schedule="constant", warmup_steps=1)
    config.validation.batch_size = config.sampling.batch_size = 8
    return config
