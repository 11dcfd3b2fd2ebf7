"""A run of three images that the embedded model makes in five steps, some of them at a later candidate."""

from __future__ import annotations

from pathlib import Path

from small_model import make_run

from rarefy.manifest import parse_manifest
from rarefy.shards.store import Store

STEPS = 5
MANIFEST = f"""
name = "traced"
[model]
name = "fashion-mnist-28"
[sampler]
steps = {STEPS}
batch = 3
[[guidance]]
term = "low-confidence"
scale = 1.0
tau = 0.5
[classes]
counts = {{ 0 = 2, 4 = 1 }}
[accept]
confidence = {{ max = 0.5 }}
max_candidates = 3
exhausted = "keep"
"""


def make_traced(out: Path) -> Store:
    """Make the run in ``out``."""
    return make_run(parse_manifest(MANIFEST, "test"), out)
