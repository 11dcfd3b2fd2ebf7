"""What of a run's networks is compiled, on a device."""

from __future__ import annotations

import math

import torch

from pipeline.manifest import Manifest
from pipeline.models.precision import Execution, capability, choose

LONG_RUN = 10_000  # steps of a batch, in all: on two cores about where compiling has paid for itself


def full_batch(manifest: Manifest) -> int:
    """Images of the run's largest batch."""
    return min(manifest.batch, manifest.shard_size, manifest.total)


def execution_of(manifest: Manifest, device: torch.device, compile: str) -> Execution:
    """What ``choose`` says for the manifest; ``auto`` leaves runs eager that would end before compiling has paid.

    The manifest alone decides, so that every actor of a run rounds alike. Raises DeviceError.
    """
    steps = len(manifest.settings.chain(manifest.preset).schedule)
    if compile == "auto" and math.ceil(manifest.total / full_batch(manifest)) * steps < LONG_RUN:
        compile = "off"
    return choose(capability(device), manifest.precision, compile)
