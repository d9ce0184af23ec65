"""BTCV: 13 abdominal organs and vessels in CT (data/btcv/README.md).

python train.py --config=configs/btcv.py --config.data.path=PATH --workdir=runs/btcv

PATH holds RawData/. data.variant: "13" (the default) or "12" (adrenal glands merged).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The tree for "recipe[,size]" of `configs/base.py`."""
    config = base.get_config(arg)
    config.data.name = "btcv"
    # A mirrored abdomen shows the right kidney where the left one belongs.
    config.data.augment.flip = False
    config.data.augment.rotate_degrees = 15.0
    return config
