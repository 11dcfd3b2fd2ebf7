"""Compares a set of images with real ones: the audit's metrics, and the on-class rate of an independent judge."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass

import torch

from benchmarks.quality.methods import CONDITIONAL
from rarefy.audit.features.extractors import Extractor, Features, extract_outputs, kept_outputs, load_extractor
from rarefy.audit.features.scores import score_reference
from rarefy.audit.inputs.dataset import read_run
from rarefy.audit.inputs.reference import Reference, load_reference, match_counts
from rarefy.audit.metrics.assembly import DEFAULT_K, set_metrics
from rarefy.audit.metrics.neighbors import Manifold, build_manifold
from rarefy.audit.metrics.tail import tail_members
from rarefy.errors import DataError, bad
from rarefy.generate.score import score_images
from rarefy.images import LabelledImages
from rarefy.manifest import Manifest
from rarefy.models.adm import Classifier
from rarefy.models.checkpoint import load_network
from rarefy.models.folder import find_model
from rarefy.models.networks import build_classifier
from rarefy.shards.store import Store

BATCH = 500


@dataclass(frozen=True)
class Yardstick:
    """What every set is compared with. The judge guides no sampler."""

    extractor: Extractor
    reference: Reference
    real: Manifold
    judge: Classifier


@functools.cache
def yardstick() -> Yardstick:
    """The embedded real images with their neighbours, and the judge."""
    extractor, folder = load_extractor(), find_model(CONDITIONAL)
    reference = load_reference(folder, None)
    assert reference is not None  # it ships with the model
    real = build_manifold(kept_outputs(reference.real.images, extractor), DEFAULT_K)
    judge, _ = load_network(lambda: build_classifier(folder.classifier), folder.file("judge"))
    return Yardstick(extractor, reference, real, judge)


def measure_set(root: str, manifest: Manifest) -> dict[str, float]:
    """The metrics of a finished run. Raises DataError if a part of it is missing or damaged."""
    run = read_run(Store(root), manifest.total)
    if run.problems:
        raise DataError(bad(root, f"{run.problems[0].where}: {run.problems[0].what}", "a complete run"))
    images = LabelledImages(run.images, run.measured.class_id, manifest.preset.class_names)
    scores = {"confidence": float(run.measured.confidence.mean()), "entropy": float(run.measured.entropy.mean())}
    return measured(extract_outputs(run.images, yardstick().extractor), images) | scores


def measure_real(manifest: Manifest) -> dict[str, float]:
    """The real baseline: the same number of held-out real images.

    Scores and on-class rate are those of the test images, since the judge was trained on the held-out images.
    """
    reference = yardstick().reference
    held_out = match_counts(reference.held_out, manifest.counts)
    scores = score_reference(manifest, reference.real, "cpu", lambda *_: None)
    assert scores is not None  # the classifier ships with the model
    return measured(kept_outputs(held_out.images, yardstick().extractor), held_out) | {
        "confidence": float(scores.confidence.mean()),
        "entropy": float(scores.entropy.mean()),
        "on_class": on_class(reference.real),
    }


def measured(features: Features, images: LabelledImages) -> dict[str, float]:
    """Metrics of images with features (N, D)."""
    labels = yardstick().reference.real.labels
    metrics = asdict(set_metrics(features, yardstick().real, tail_members(yardstick().real, labels)))
    return {"count": len(features)} | metrics | {"on_class": on_class(images)}


def on_class(images: LabelledImages) -> float:
    """Fraction of images that the judge assigns to their class."""
    hits = 0
    for start in range(0, len(images), BATCH):
        y = torch.from_numpy(images.labels[start : start + BATCH])
        scores = score_images(yardstick().judge, torch.from_numpy(images.images[start : start + BATCH]), y)
        hits += int((scores.predicted_id == y).sum())
    return hits / len(images)
