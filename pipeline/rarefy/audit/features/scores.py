"""The real images' scores by the guiding classifier, and classes by the judge, which guided nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rarefy.audit.features.cache import array_digest, cached
from rarefy.audit.features.extractors import DEFAULT_BATCH, check_finite
from rarefy.device import find_device
from rarefy.execution import load_prepared, prepare
from rarefy.generate.score import score_images
from rarefy.images import LabelledImages
from rarefy.manifest import Manifest
from rarefy.models.checkpoint import load_network
from rarefy.models.networks import build_classifier

JUDGE = "judge"
Progress = Callable[[str, int, int], None]
COLUMNS: dict[str, type] = {"confidence": np.float64, "entropy": np.float64, "predicted_id": np.int64}


@dataclass(frozen=True)
class ReferenceScores:
    """The classifier's output for the real images at t = 0: p(own class), entropy in nats, most probable class.

    judged_id: the most probable class by the judge, see ``judge_images``.
    """

    confidence: NDArray[np.float64]
    entropy: NDArray[np.float64]
    predicted_id: NDArray[np.int64]
    judged_id: NDArray[np.int64] | None = None


def score_reference(
    manifest: Manifest, real: LabelledImages, device: str, progress: Progress
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
    columns: dict[str, Any] = {name: arrays[name].astype(kind) for name, kind in COLUMNS.items()}
    return ReferenceScores(**columns, judged_id=judge_images(manifest, real.images, device, progress))


def judge_images(
    manifest: Manifest, images: NDArray[np.uint8], device: str, progress: Progress
) -> NDArray[np.int64] | None:
    """The most probable class of each image, uint8 (N, C, H, W), by the model's judge: (N,); None if it has none here.

    The judge is a classifier of images without noise that takes no part in the guidance. What the guidance aims at is
    to please the guiding classifier, so that one is no independent witness. Raises CheckpointError, DataError.
    """
    preset = manifest.preset
    if not manifest.model.trained or JUDGE not in preset.files or not preset.file(JUDGE).is_file():
        return None
    network, sha256 = load_network(lambda: build_classifier(preset.classifier), preset.file(JUDGE))
    place = find_device(device)
    judge = prepare(network, place)

    def compute() -> dict[str, NDArray[Any]]:
        chosen = []
        for start in range(0, len(images), DEFAULT_BATCH):
            progress("judging classes", start, len(images))
            part = torch.tensor(images[start : start + DEFAULT_BATCH]).to(place)
            scores = score_images(judge, part, part.new_zeros(len(part), dtype=torch.int64))
            check_finite("scores of the judge", scores.confidence.numpy(), [])
            chosen.append(scores.predicted_id.numpy())
        return {"judged_id": np.concatenate(chosen)}

    return cached((JUDGE, sha256, array_digest(images)), compute)["judged_id"].astype(np.int64)
