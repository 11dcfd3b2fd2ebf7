"""The experiments behind docs/RESULTS.md: the samplers of both papers on the embedded models."""
