"""Loads a run's networks for a device."""

from __future__ import annotations

import torch

from rarefy.execution import load_prepared
from rarefy.manifest import Manifest
from rarefy.models.load import Models


def full_batch(manifest: Manifest) -> int:
    """Number of images in the run's largest batch."""
    return min(manifest.batch, manifest.shard_size, manifest.total)


def load_for_run(manifest: Manifest, device: torch.device, compile: str) -> Models:
    """A run's models, prepared for its batches. Raises CheckpointError, DeviceError."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    spec, precision = manifest.model, manifest.precision
    hashes = spec.checkpoint_sha256, spec.classifier_sha256
    return load_prepared(
        manifest.preset, spec.checkpoint, spec.classifier, hashes, device, precision, compile, full_batch(manifest)
    )
