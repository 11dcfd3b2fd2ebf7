"""How a run's networks are loaded and executed on a device."""

from __future__ import annotations

import torch

from rarefy.fast.cpu.allocator import keep_freed_memory
from rarefy.fast.precision import execution_on, set_up
from rarefy.manifest import Manifest
from rarefy.models.load import Models, load_models


def full_batch(manifest: Manifest) -> int:
    """Images of the run's largest batch."""
    return min(manifest.batch, manifest.shard_size, manifest.total)


def load_for_run(manifest: Manifest, device: torch.device, compile: str) -> Models:
    """A run's models, with this process set up for its batches. Raises CheckpointError, DeviceError."""
    execution = execution_on(device, manifest.precision, compile)
    if device.type == "cpu":
        torch.set_num_threads(1)
        keep_freed_memory()
    spec = manifest.model
    hashes = spec.checkpoint_sha256, spec.classifier_sha256
    models = load_models(manifest.preset, spec.checkpoint, spec.classifier, hashes, device, manifest.precision)
    set_up((models.unet, models.classifier), execution, full_batch(manifest))
    return models
