"""The [select] stage: from a sealed pool of samples to a sealed data set of the rarest of each class."""
