"""BraTS 2021: brain tumours in four MR sequences (data/brats2021/README.md).

python train.py --config=configs/brats2021.py --config.data.path=PATH --workdir=runs/brats

PATH holds RSNA_ASNR_MICCAI_BraTS2021_TrainingData/ or the case folders. data.variant: "regions"
(whole tumour, core and enhancing; the default), "whole" or "labels".
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    """The tree for "recipe[,size]" of `configs/base.py`."""
    config = base.get_config(arg)
    config.data.name = "brats2021"
    return config
