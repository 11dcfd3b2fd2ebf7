"""Builds networks from their descriptions. ``kind`` picks the adapter."""

from __future__ import annotations

from rarefy.errors import ManifestError, bad
from rarefy.models.adm import Classifier, UNet
from rarefy.models.config import NetworkConfig, NetworkSpec


def build_unet(spec: NetworkSpec) -> UNet:
    """The diffusion network that a model folder describes, with random weights."""
    return UNet(_adm(spec, "unet.kind"))


def build_classifier(spec: NetworkSpec | None) -> Classifier:
    """The classifier that a model folder describes, with random weights. Raises ManifestError if it has none."""
    if spec is None:
        raise ManifestError(bad("classifier", None, "a classifier: this model has none"))
    return Classifier(_adm(spec, "classifier.kind"))


def _adm(spec: NetworkSpec, field: str) -> NetworkConfig:
    if not isinstance(spec, NetworkConfig):
        raise ManifestError(bad(field, spec.kind, NetworkConfig.kind))
    return spec
