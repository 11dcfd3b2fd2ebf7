"""The manifest that benchmarks of whole runs fill in: the embedded model with the demo's guidance."""

from __future__ import annotations

MANIFEST = """
name = "benchmark"
[model]
preset = "fashion-mnist-28"
[sampler]
method = "ancestral"
steps = {steps}
precision = "{precision}"
batch = {batch}
[[guidance]]
term = "low-confidence"
scale = 1.0
tau = 0.7
[[guidance]]
term = "predicted-real-image"
gamma = [[300, 0.05], [500, -0.05]]
[classes]
total = {images}
[output]
shard_size = {shard_size}
"""
