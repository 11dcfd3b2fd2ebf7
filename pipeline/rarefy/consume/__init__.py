"""Reading a finished data set: its rows, its images, and both mixed with real ones in a training job."""
