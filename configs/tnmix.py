"""TNMIX: thyroid nodules of TN-SCUI 2020 and DDTI (data/tnmix/README.md).

python train.py --config=configs/tnmix.py --config.data.path=PATH --workdir=runs/tnmix

PATH holds TNSCUI2020_train/ and DDTI/1_or_data/.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The tree for "recipe[,size]" of `configs/base.py`."""
    config = base.get_config(arg)
    config.data.name = "tnmix"
    return config
