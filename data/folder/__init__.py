"""Any folder of images or volumes and masks as a dataset (see README.md)."""

from data.folder.folder_dataset_builder import Builder

__all__ = ["Builder"]
