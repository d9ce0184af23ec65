"""BTCV: 13 abdominal organs and vessels in CT (see README.md)."""

from data.btcv.btcv_dataset_builder import Builder

__all__ = ["Builder"]
