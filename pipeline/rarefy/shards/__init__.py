"""WebDataset tars, Parquet metadata and commit markers on any file system."""
