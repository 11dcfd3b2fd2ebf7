"""Loads a run's networks for a device."""

from __future__ import annotations

import torch

from rarefy.execution import load_prepared
from rarefy.generate.memory import loading
from rarefy.manifest import Manifest
from rarefy.models.load import Models
from rarefy.models.source import check_trained, on_this_machine


def full_batch(manifest: Manifest) -> int:
    """Number of images in the run's largest batch."""
    return min(manifest.batch, manifest.shard_size, sum(manifest.pool.values()))


def load_for_run(manifest: Manifest, device: torch.device, compile: str) -> Models:
    """A run's models, prepared for its batches. Raises CheckpointError, DeviceError, ManifestError."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    spec, precision, batch = on_this_machine(manifest.model), manifest.precision, full_batch(manifest)
    check_trained(spec)
    hashes = spec.checkpoint_sha256, spec.classifier_sha256
    with loading(device):
        return load_prepared(spec.folder, spec.checkpoint, spec.classifier, hashes, device, precision, compile, batch)
