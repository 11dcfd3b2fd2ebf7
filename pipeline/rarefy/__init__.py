"""rarefy: audited synthetic data sets of rare images."""

__version__ = "0.1.0"
