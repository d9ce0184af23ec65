"""Your own images.

python train.py --config=configs/folder.py --config.data.path=PATH --workdir=runs/mine

PATH holds images/ and masks/ (or masks_<rater>/), optionally train.txt, val.txt and test.txt.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The tree for "recipe[,size]" of `configs/base.py`."""
    return base.get_config(arg)
