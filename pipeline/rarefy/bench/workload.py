"""What is measured: a manifest's model or a preset's, with random weights where it has no file here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from rarefy.errors import DeviceError, ManifestError, bad
from rarefy.fast.precision import set_precision, to_device
from rarefy.manifest import Manifest, load_manifest, parse_manifest
from rarefy.models.adm import Classifier, UNet
from rarefy.models.folder import ModelFolder, find_model
from rarefy.models.load import Models, load_models

DEFAULT_PRESET = "fashion-mnist-28"
_MANIFEST = """
name = "bench"
[model]
preset = "{name}"
[sampler]
method = "ancestral"
[[guidance]]
term = "classifier"
scale = {scale}
[classes]
total = 1
"""


def bench_manifest(path: str | None, preset: str | None, precision: str | None) -> Manifest:
    """The manifest of that path, or one for a preset: 250 ancestral steps, classifier guidance.

    precision: replaces the manifest's. Raises ManifestError.
    """
    if path is not None and preset is not None:
        raise ManifestError(bad("preset", preset, "allowed beside a manifest, which names its own"))
    if path is not None:
        manifest = load_manifest(path)
    else:
        found = find_model(preset or DEFAULT_PRESET)
        manifest = parse_manifest(_MANIFEST.format(name=found.name, scale=found.recommended_scale), "bench")
    return replace(manifest, precision=precision or manifest.precision)


def find_device(name: str) -> torch.device:
    """The device of that name; DeviceError for what is neither cpu nor cuda, or a GPU number that is not here."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(bad("device", name, "cpu or cuda"))
    if device.type == "cuda" and torch.cuda.is_available() and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(bad("device", name, f"below cuda:{torch.cuda.device_count()}"))
    return device


def load_workload(manifest: Manifest, device: torch.device) -> tuple[Models, str]:
    """The manifest's networks and where their weights come from. Raises CheckpointError for files that do not fit."""
    spec, preset = manifest.model, manifest.preset
    paths = [path for path in (spec.checkpoint, spec.classifier) if path is not None]
    if (len(paths) < 2 and not preset.embedded) or not all(Path(path).is_file() for path in paths):
        return random_models(preset, manifest.precision, device), "random, as no file is here: the speed is the same"
    hashes = spec.checkpoint_sha256, spec.classifier_sha256
    models = load_models(preset, spec.checkpoint, spec.classifier, hashes, device, manifest.precision)
    return models, "from files" if paths else "embedded"


def random_models(preset: ModelFolder, precision: str, device: torch.device) -> Models:
    """A preset's networks as they are before training."""
    unet, classifier = UNet(preset.unet), Classifier(preset.classifier)
    for network in (unet, classifier):
        set_precision(network, precision, device)
        to_device(network, device).eval().requires_grad_(False)
    return Models(preset, unet, classifier, "random", "random")


def enlarged(preset: ModelFolder, factor: int) -> ModelFolder:
    """The same widths for images ``factor`` times as high and wide."""
    unet, classifier = (
        replace(network, image_size=factor * network.image_size) for network in (preset.unet, preset.classifier)
    )
    return replace(preset, unet=unet, classifier=classifier, files={})
