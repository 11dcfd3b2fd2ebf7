"""What ships inside the package: weights and reference images of the embedded presets, with their provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.training.data import LabelledImages

_ROOT = Path(__file__).parent


def weights(preset: str, network: str) -> Path:
    """Path of an embedded preset's EMA weights; network: ``unet`` or ``classifier``."""
    return _ROOT / preset / f"{network}.safetensors"


def provenance(preset: str) -> dict[str, Any]:
    """Where an embedded preset's files come from: commands, data hashes, steps, curves, measured quality."""
    loaded: dict[str, Any] = json.loads((_ROOT / preset / "provenance.json").read_text())
    return loaded


def reference(preset: str, split: str) -> LabelledImages:
    """Real images of an embedded preset: ``test`` (the audit's reference) or ``train`` (for the real-real floor)."""
    with np.load(_ROOT / preset / f"reference-{split}.npz", allow_pickle=False) as arrays:
        return LabelledImages(arrays["images"], arrays["labels"], tuple(arrays["class_names"].tolist()))
