"""Any folder of 2-D images and masks as a dataset (see README.md)."""

from data.folder.folder_dataset_builder import Builder, prepare

__all__ = ["Builder", "prepare"]
