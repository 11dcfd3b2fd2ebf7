"""Loading a model's networks from their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from rarefy.errors import CheckpointError, bad
from rarefy.models.checkpoint import load_network
from rarefy.models.config import NetworkSpec
from rarefy.models.folder import ModelFolder
from rarefy.models.networks import build_network


@dataclass(frozen=True, eq=False)
class Models:
    """Loaded networks, in eval mode, frozen, on one device. A model without a classifier has None for it."""

    preset: ModelFolder
    unet: nn.Module
    classifier: nn.Module | None
    checkpoint_sha256: str
    classifier_sha256: str | None

    @property
    def device(self) -> torch.device:
        """Where the networks live."""
        return next(self.unet.parameters()).device


def load_models(
    preset: ModelFolder,
    checkpoint: str | None,
    classifier: str | None,
    sha256s: tuple[str | None, str | None],
    device: torch.device,
    prepare: Callable[[nn.Module], object] | None = None,
) -> Models:
    """Load a model's networks. Paths may be None if the weights are in the model's folder.

    prepare: called with each network before its parameters are read; it may change their types. Raises CheckpointError,
    and ManifestError for a network of your own that ``preset.allow_plugins`` does not allow.
    """

    def build(spec: NetworkSpec, role: str) -> Callable[[], nn.Module]:
        return lambda: build_network(spec, role, preset.allow_plugins)

    unet_path = _path(preset, "unet", checkpoint, "checkpoint")
    unet, unet_sha = load_network(build(preset.unet, "unet"), unet_path, sha256s[0], prepare)
    guide, guide_sha = None, None
    if (spec := preset.classifier) is not None:
        guide_path = _path(preset, "classifier", classifier, "classifier")
        guide, guide_sha = load_network(build(spec, "classifier"), guide_path, sha256s[1], prepare)
    return Models(
        preset=preset,
        unet=unet.to(device),
        classifier=None if guide is None else guide.to(device),
        checkpoint_sha256=unet_sha,
        classifier_sha256=guide_sha,
    )


def _path(preset: ModelFolder, role: str, given: str | None, key: str) -> Path:
    if given:
        return Path(given)
    if role not in preset.files:
        allowed = f"the path of a file for {preset.name}, whose folder has no weights"
        raise CheckpointError(bad(f"model.{key}", given, allowed))
    return preset.file(role)
