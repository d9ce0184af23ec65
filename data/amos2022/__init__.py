"""AMOS 2022: 15 abdominal organs in CT and MR (see README.md)."""

from data.amos2022.amos2022_dataset_builder import Builder

__all__ = ["Builder"]
