"""Lesion-like images with a known distribution of raters (see README.md)."""

from data.phantom.model import anatomy, fresh_raters, rater_probability
from data.phantom.phantom_dataset_builder import Builder

__all__ = ["Builder", "anatomy", "fresh_raters", "rater_probability"]
