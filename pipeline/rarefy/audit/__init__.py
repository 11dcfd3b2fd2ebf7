"""The audit of a data set: inputs, features, metrics with their real baseline, and the pages that show them."""
