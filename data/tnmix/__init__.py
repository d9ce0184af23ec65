"""TNMIX: thyroid nodules of TN-SCUI 2020 and DDTI (see README.md)."""

from data.tnmix.tnmix_dataset_builder import Builder

__all__ = ["Builder"]
