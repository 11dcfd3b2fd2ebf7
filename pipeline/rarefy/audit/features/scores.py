"""The guiding classifier's scores for the real images: the baseline for confidence and entropy of generated ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rarefy.audit.features.cache import cached
from rarefy.audit.features.extractors import DEFAULT_BATCH, check_finite
from rarefy.device import find_device
from rarefy.execution import load_prepared
from rarefy.generate.score import score_images
from rarefy.images import LabelledImages
from rarefy.manifest import Manifest

COLUMNS: dict[str, type] = {"confidence": np.float64, "entropy": np.float64, "predicted_id": np.int64}


@dataclass(frozen=True)
class ReferenceScores:
    """The classifier's output for the real images at t = 0: p(own class), entropy in nats, most probable class."""

    confidence: NDArray[np.float64]
    entropy: NDArray[np.float64]
    predicted_id: NDArray[np.int64]


def score_reference(
    manifest: Manifest, real: LabelledImages, device: str, progress: Callable[[str, int, int], None]
) -> ReferenceScores | None:
    """Score the real images; None without a classifier, or if the weights are not on this machine.

    Raises CheckpointError for weights that are here but are not those of the run, DataError for scores that are not
    finite.
    """
    model = manifest.model
    if manifest.preset.classifier is None or not model.trained:
        return None
    hashes, place = (model.checkpoint_sha256, model.classifier_sha256), find_device(device)
    models = load_prepared(manifest.preset, model.checkpoint, model.classifier, hashes, place, "exact")
    classifier = models.classifier
    assert classifier is not None

    def compute() -> dict[str, NDArray[Any]]:
        columns: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
        for start in range(0, len(real), DEFAULT_BATCH):
            progress("scoring the reference", start, len(real))
            images = torch.tensor(real.images[start : start + DEFAULT_BATCH]).to(place)
            labels = torch.tensor(real.labels[start : start + DEFAULT_BATCH]).to(place)
            scores = score_images(classifier, images, labels)
            for name, parts in columns.items():
                parts.append(getattr(scores, name).numpy())
        found = {name: np.concatenate(parts) for name, parts in columns.items()}
        check_finite("scores of the reference", np.stack([found["confidence"], found["entropy"]], axis=1), real.keys)
        return found

    arrays = cached(("scores", str(models.classifier_sha256), real.sha256()), compute)
    return ReferenceScores(**{name: arrays[name].astype(kind) for name, kind in COLUMNS.items()})
