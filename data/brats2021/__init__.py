"""BraTS 2021: brain tumours in four co-registered MR sequences (see README.md)."""

from data.brats2021.brats2021_dataset_builder import Builder

__all__ = ["Builder"]
