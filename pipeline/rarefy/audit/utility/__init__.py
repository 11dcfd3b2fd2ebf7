"""Utility: what the generated images add to the real ones when a classifier is trained on them."""
