"""AMOS 2022: 15 abdominal organs in CT or MR (data/amos2022/README.md).

python train.py --config=configs/amos2022.py --config.data.path=PATH --workdir=runs/amos

PATH holds amos22/. data.variant: "ct" (the default), "mr" or "ct+mr".
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The tree for "recipe[,size]" of `configs/base.py`."""
    config = base.get_config(arg)
    config.data.name = "amos2022"
    # A mirrored abdomen shows the right kidney where the left one belongs.
    config.data.augment.flip = False
    config.data.augment.rotate_degrees = 15.0
    return config
