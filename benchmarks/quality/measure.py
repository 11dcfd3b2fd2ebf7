"""One set of images against the real ones: the audit's numbers, and the class by a judge that guides nothing."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Extractor, Features, extract_features, kept_features, load_extractor
from rarefy.audit.features.scores import score_reference
from rarefy.audit.inputs.dataset import read_run
from rarefy.audit.inputs.reference import Reference, load_reference, match_counts
from rarefy.audit.metrics.assembly import DEFAULT_K
from rarefy.audit.metrics.distances import frechet_distance
from rarefy.audit.metrics.neighbors import Bools, Manifold, build_manifold, find_neighbors
from rarefy.errors import DataError, bad
from rarefy.generate.score import score_images
from rarefy.manifest import Manifest
from rarefy.models.adm import Classifier
from rarefy.models.checkpoint import load_network
from rarefy.models.folder import library
from rarefy.plan import shard_names
from rarefy.shards.index import committed
from rarefy.shards.store import Store

FOLDER = "fashion-mnist-28"
TAIL_SHARE = 0.1  # of the real images, the sparsest by AvgkNN
JUDGED_AT_ONCE = 500


@dataclass(frozen=True)
class Yardstick:
    """What every set is held against, loaded once a process. tail: the rarest tenth of the real images."""

    extractor: Extractor
    reference: Reference
    real: Manifold
    tail: Bools
    judge: Classifier


@functools.cache
def yardstick() -> Yardstick:
    """The embedded reference images with their neighbours, and the judge."""
    torch.set_num_threads(1)
    extractor, preset = load_extractor(), library()[FOLDER]
    reference = load_reference(preset, None)
    assert reference is not None  # it is embedded
    real = build_manifold(kept_features(reference.real.images, extractor), DEFAULT_K)
    tail = np.asarray(real.mean_distance >= np.quantile(real.mean_distance, 1 - TAIL_SHARE))
    judge, _ = load_network(lambda: Classifier(preset.classifier), library()[FOLDER].file("judge"))
    return Yardstick(extractor, reference, real, tail, judge)


def measure_set(root: str, manifest: Manifest) -> dict[str, Any]:
    """The numbers of a finished run: those of ``compared`` and, from its metadata, the guiding classifier's.

    images_per_s: of one core, from the shards' markers. Raises DataError where a part of the run is missing or damaged.
    """
    store = Store(root)
    run = read_run(store, manifest.total)
    if run.problems:
        raise DataError(bad(root, f"{run.problems[0].where}: {run.problems[0].what}", "a whole run"))
    rows, features = run.measured, extract_features(run.images, yardstick().extractor)
    markers = committed(store, shard_names(manifest), manifest.digest).values()
    return compared(features, run.images, rows.class_id) | {
        "confidence": float(rows.confidence.mean()),
        "entropy": float(rows.entropy.mean()),
        "guide_on_class": float((rows.predicted_id == rows.class_id).mean()),
        "images_per_s": sum(marker.rows for marker in markers) / sum(marker.seconds for marker in markers),
    }


def measure_floor(manifest: Manifest) -> dict[str, Any]:
    """The same of as many real images that are not among those compared with; confidence and entropy of the latter."""
    found = yardstick()
    held_out = match_counts(found.reference.held_out, manifest.counts)
    scores = score_reference(manifest, found.reference.real, "cpu", JUDGED_AT_ONCE, lambda *_: None)
    assert scores is not None  # the classifier is embedded
    return compared(kept_features(held_out.images, found.extractor), held_out.images, held_out.labels) | {
        "confidence": float(scores.confidence.mean()),
        "entropy": float(scores.entropy.mean()),
        # The judge has learnt from the held-out images: only the test images tell how often it is right.
        "on_class": on_class(found.reference.real.images, found.reference.real.labels),
    }


def compared(features: Features, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Metrics of images against the real ones. features: (N, D); images: (N, C, H, W); labels: (N,) classes wanted.

    variance: of the features, summed, as a share of the real images'.
    """
    found = yardstick()
    hood = find_neighbors(build_manifold(features, DEFAULT_K), found.real)
    return {
        "count": len(features),
        "fid": frechet_distance(features, found.real.features),
        "precision": hood.precision,
        "recall": hood.recall,
        "density": hood.density(DEFAULT_K),
        "coverage": hood.coverage,
        "tail_recall": float(hood.recalled[found.tail].mean()),
        "tail_coverage": float(hood.covered[found.tail].mean()),
        "rarity": float(np.nanmean(hood.rarity)),
        "avg_knn": float(hood.mean_distance.mean()),
        "variance": float(features.var(axis=0).sum() / found.real.features.var(axis=0).sum()),
        "on_class": on_class(images, labels),
    }


def on_class(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Share of the images that the judge takes for the class wanted."""
    judge, hits = yardstick().judge, 0
    for start in range(0, len(images), JUDGED_AT_ONCE):
        part = slice(start, start + JUDGED_AT_ONCE)
        y = torch.from_numpy(labels[part])
        hits += int((score_images(judge, torch.from_numpy(images[part]), y).predicted_id == y).sum())
    return hits / len(images)
