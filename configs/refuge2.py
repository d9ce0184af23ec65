"""REFUGE 2: optic disc and cup in fundus photographs (data/refuge2/README.md).

python train.py --config=configs/refuge2.py --config.data.path=PATH --workdir=runs/refuge2

PATH holds Training400/ and the other unpacked archives. With --config.data.variant=multirater it
holds Training-400/ and Test-400/, which seven specialists annotated one by one.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The tree for "recipe[,size]" of `configs/base.py`."""
    config = base.get_config(arg)
    config.data.name = "refuge2"
    return config
