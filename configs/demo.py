"""The demo: phantoms, a small network, minutes on two CPU cores (see the README)."""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The tree for a recipe of `configs/base.py`, cut down to a few minutes on a CPU."""
    config = base.get_config(arg)
    config.data.name = "phantom"
    config.data.image_size = 64
    config.data.cache_dir = "runs/cache"
    config.model.condition_widths = (16, 32, 64, 96)
    config.model.widths = (8, 16, 32, 48)
    config.model.semantic_features = 32
    config.num_steps = 800
    config.batch_size = 8
    config.eval_every_steps = 200
    config.checkpoint_every_steps = 200
    config.log_every_steps = 20
    config.optim.warmup_steps = 40
    config.validation.max_cases = 16
    return config
