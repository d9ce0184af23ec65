"""REFUGE 2: optic disc and cup, by consensus or by seven raters (see README.md)."""

from data.refuge2.refuge2_dataset_builder import Builder

__all__ = ["Builder"]
