"""ISIC 2018 task 1: the outline of a skin lesion (see README.md)."""

from data.isic2018.isic2018_dataset_builder import Builder

__all__ = ["Builder"]
