"""Builds networks from their descriptions. ``kind`` picks the adapter.

The protocol of a network, whoever wrote it:

A U-Net is an nn.Module with ``forward(x, t, y)``. x: (B, C, H, W) float32, roughly in [-1, 1] when clean; t: (B,)
float32 with whole numbers, the original time steps from 0 (nearly clean) to ``schedule.steps`` - 1; y: (B,) int64 class
ids, or None if ``num_classes`` is None. It returns (B, C, H, W) float32: eps, v or the clean image, as
``schedule.prediction`` says. Twice as many channels mean that it also predicts a learned sigma in the last C: a value
from -1 to 1 between the logs of the posterior variance and of beta (Nichol & Dhariwal 2021).

A classifier is an nn.Module with ``forward(x, t)``, which returns logits (B, K) and is differentiable in x; it must
know noisy images. It may have ``features(x)``, clean images -> (B, F), for guidance terms that call it.

Neither may mix the images of a batch, or an image would depend on its neighbours. A network is first built on the meta
device, without memory, and then filled from its file: tensors that are neither parameters nor registered buffers must
be computed in ``forward``.
"""

from __future__ import annotations

import re

from torch import nn

from rarefy.errors import ManifestError, bad
from rarefy.models.adapters.diffusers import build_diffusers
from rarefy.models.adapters.own import build_own
from rarefy.models.adm import Classifier, UNet
from rarefy.models.config import NetworkConfig, NetworkSpec

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def build_network(spec: NetworkSpec, role: str, allow_plugins: bool = False) -> nn.Module:
    """A network with random weights. role: ``unet`` or ``classifier``.

    allow_plugins: whether a kind that is an import path may be imported. Raises ManifestError for an unknown kind, and
    for one that is not allowed.
    """
    if isinstance(spec, NetworkConfig):
        return UNet(spec) if role == "unet" else Classifier(spec)
    if spec.kind == "diffusers" and role == "unet":
        return build_diffusers(spec)
    if IMPORT_PATH.fullmatch(spec.kind):
        return build_own(spec, role, allow_plugins)
    kinds = [NetworkConfig.kind, *(["diffusers"] if role == "unet" else []), "an import path 'package.module:build'"]
    raise ManifestError(bad(f"{role}.kind", spec.kind, " or ".join(kinds)))


def build_unet(spec: NetworkSpec) -> UNet:
    """An ADM U-Net with random weights, for training. Raises ManifestError for a network of another kind."""
    return UNet(_adm(spec, "unet"))


def build_classifier(spec: NetworkSpec | None) -> Classifier:
    """An ADM classifier with random weights, for training. Raises ManifestError for none or one of another kind."""
    if spec is None:
        raise ManifestError("classifier: this model has none")
    return Classifier(_adm(spec, "classifier"))


def _adm(spec: NetworkSpec, role: str) -> NetworkConfig:
    if not isinstance(spec, NetworkConfig):
        raise ManifestError(bad(f"{role}.kind", spec.kind, f"{NetworkConfig.kind}, the kind that rarefy trains"))
    return spec
