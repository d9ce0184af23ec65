"""ISIC 2018 task 1: lesions in dermoscopic images (data/isic2018/README.md).

python train.py --config=configs/isic2018.py --config.data.path=PATH --workdir=runs/isic2018

PATH holds the unpacked archives, ISIC2018_Task1-2_Training_Input/ and so on.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The tree for "recipe[,size]" of `configs/base.py`."""
    config = base.get_config(arg)
    config.data.name = "isic2018"
    return config
