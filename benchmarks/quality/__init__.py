"""The experiment behind docs/RESULTS.md: both papers' samplers on the embedded models, and what is written of it."""
