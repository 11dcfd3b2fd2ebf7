"""How a run's networks are loaded and executed on a device."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from pipeline.allocator import keep_freed_memory
from pipeline.manifest import Manifest
from pipeline.models.catalog import Models, load_models
from pipeline.models.precision import Execution, capability, choose, set_up

LONG_RUN = 10_000  # steps of a batch, in all, from where on compiling pays for itself


def full_batch(manifest: Manifest) -> int:
    """Images of the run's largest batch."""
    return min(manifest.batch, manifest.shard_size, manifest.total)


def execution_of(manifest: Manifest, device: torch.device, compile: str) -> Execution:
    """What ``choose`` says for the manifest; ``auto`` does not compile for runs that would end before it has paid.

    The manifest alone decides, so that every actor of a run rounds alike. Raises DeviceError.
    """
    steps = len(manifest.settings.chain(manifest.preset).schedule)
    long = math.ceil(manifest.total / full_batch(manifest)) * steps >= LONG_RUN
    execution = choose(capability(device), manifest.precision, compile)
    return replace(execution, norm_compiled=execution.norm_compiled and long)


def load_for_run(manifest: Manifest, device: torch.device, compile: str) -> Models:
    """A run's models, with this process set up for its batches. Raises CheckpointError, DeviceError."""
    execution = execution_of(manifest, device, compile)
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    spec = manifest.model
    hashes = spec.checkpoint_sha256, spec.classifier_sha256
    models = load_models(manifest.preset, spec.checkpoint, spec.classifier, hashes, device, manifest.precision)
    set_up((models.unet, models.classifier), execution, full_batch(manifest))
    return models
