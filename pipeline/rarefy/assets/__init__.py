"""What ships inside the package, a folder a data set: weights and reference images, with their provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from rarefy.images import LabelledImages

_ROOT = Path(__file__).parent


def weights(folder: str, network: str) -> Path:
    """Path of a network's EMA weights: ``unet``, ``unet-uncond``, ``classifier``, ``classifier-ect`` or ``judge``."""
    return _ROOT / folder / f"{network}.safetensors"


def provenance(folder: str) -> dict[str, Any]:
    """Where the folder's files come from: commands, data hashes, steps, curves, measured quality."""
    loaded: dict[str, Any] = json.loads((_ROOT / folder / "provenance.json").read_text())
    return loaded


def fast_errors(checkpoint_sha256: str, classifier_sha256: str) -> dict[str, Any] | None:
    """What ``fast`` changes of the embedded model with these weights (benchmarks/precision.py); None of any other."""
    for path in sorted(_ROOT.glob("*/fast.json")):
        found: dict[str, Any] = json.loads(path.read_text())
        if (found["checkpoint_sha256"], found["classifier_sha256"]) == (checkpoint_sha256, classifier_sha256):
            return found
    return None


def reference(folder: str, split: str) -> LabelledImages:
    """The data set's real images: ``test`` (the audit's reference) or ``train`` (for the real-real floor)."""
    with np.load(_ROOT / folder / f"reference-{split}.npz", allow_pickle=False) as arrays:
        return LabelledImages(arrays["images"], arrays["labels"], tuple(arrays["class_names"].tolist()))
