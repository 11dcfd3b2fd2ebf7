"""The audit of a run: reads OUT's shards, compares them with real images, writes OUT/audit.

OUT/audit/metrics.json holds

    format      "rarefy-audit-v1"
    metrics     {name: {value, floor, better, extractor, layer, k, generated_count, real_count, floor_count}}
                floor: the same metric of held-out real images, as many a class as were measured, against the same
                real images; k is null where no neighbours are used; KID also has std and floor_std. Names:
                fid_EXTRACTOR, kid_EXTRACTOR, precision, recall, tail_recall, density, coverage, rarity, and
                on_class_rate (over all samples; its floor is the classifier's accuracy on the real images). Without
                a reference only on_class_rate.
    histograms  {confidence, entropy, rarity: {unit, edges, generated, reference, generated_mean, reference_mean}};
                shares of the samples a bin; rarity: of images inside the real data, its reference the floor's images
    per_class   [{class_id, class_name, planned, count, on_class_rate, confidence, entropy, reference_*, precision,
                recall, recall_floor}]; null where a class has no image
    provenance  manifest (name, digest, text), weights' hashes, counts, extractor, reference, versions, duration

OUT/audit/samples.parquet has one row a measured image, OUT/audit/rarest.parquet the rarest images a class, both sides.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.audit.cache import array_digest, cached
from pipeline.audit.dataset import RunData, read_run
from pipeline.audit.features import DEFAULT_BATCH, Extractor, extract_features, load_extractor, resolve_device
from pipeline.audit.metrics import DEFAULT_K, Comparison, compare_manifolds
from pipeline.audit.neighbors import build_manifold
from pipeline.audit.reference import Reference, load_reference, match_counts
from pipeline.audit.summary import (
    Counts,
    ReferenceScores,
    add_neighbor_columns,
    class_table,
    histogram,
    metric_entries,
    on_class_entry,
)
from pipeline.audit.tables import write_rarest, write_samples
from pipeline.errors import CheckpointError
from pipeline.generate.score import score_images
from pipeline.manifest import Manifest
from pipeline.models.catalog import load_models
from pipeline.shards.store import Store
from pipeline.training.data import LabelledImages

Progress = Callable[[str, int, int], None]
FORMAT = "rarefy-audit-v1"
METRICS_PATH = "audit/metrics.json"


@dataclass(frozen=True)
class AuditOptions:
    """What to measure with, and where. None of it changes a data set.

    reference: a folder of real images (default: the preset's embedded ones). limit: images measured at most; the
    embedded floor has 10,000, and more images than the floor has would not be comparable with it.
    """

    extractor: str = "efficientnet-lite0"
    k: int = DEFAULT_K
    inception_weights: str | None = None
    batch: int = DEFAULT_BATCH
    device: str = "cpu"
    reference: str | None = None
    limit: int = 10_000


@dataclass(frozen=True)
class _Measured:
    """Both comparisons in feature space, and the held-out real images that the floor comes from."""

    found: Comparison
    floor: Comparison
    held_out: LabelledImages


def run_audit(store: Store, options: AuditOptions, progress: Progress) -> dict[str, Any]:
    """Measure the run in ``store``, write OUT/audit, return the content of metrics.json.

    progress(stage, done, total) is called as work goes on. Raises OutputError or ShardError for a folder without a
    readable run, ManifestError, DataError, CheckpointError or DeviceError for options that cannot be met.
    """
    started = time.monotonic()
    resolve_device(options.device)
    extractor = load_extractor(options.extractor, options.inception_weights)
    progress("reading shards", 0, 1)
    run = read_run(store, options.limit)
    reference = load_reference(run.manifest.preset, options.reference)
    scores = None if reference is None else _reference_scores(run.manifest, reference.real, options, progress)
    measured = None if reference is None else _measure(run, reference, extractor, options, progress)
    result = _result(run, reference, scores, measured, extractor, options)
    result["provenance"]["duration_s"] = round(time.monotonic() - started, 1)
    write_samples(store, run.measured, run.manifest.preset, measured.found.neighborhood if measured else None)
    if measured is not None:
        write_rarest(store, run, measured.found.neighborhood, measured.held_out, measured.floor.neighborhood)
    store.write_bytes(METRICS_PATH, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
    return result


def _measure(
    run: RunData, reference: Reference, extractor: Extractor, options: AuditOptions, progress: Progress
) -> _Measured:
    class_ids, numbers = np.unique(run.measured.class_id, return_counts=True)
    held_out = match_counts(reference.held_out, dict(zip(class_ids.tolist(), numbers.tolist(), strict=True)))

    def features(stage: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return extract_features(
            images, extractor, options.device, options.batch, lambda done, total: progress(stage, done, total)
        )

    def kept(stage: str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        parts = ("features", extractor.digest, extractor.preprocessing, extractor.layer, array_digest(images))
        found = cached(parts, lambda: {"features": features(stage, images)})
        return np.asarray(found["features"], dtype=np.float32)

    generated = build_manifold(features("features of the run", run.images), options.k)
    real = build_manifold(kept("features of the reference", reference.real.images), options.k)
    floor = build_manifold(kept("features of the floor", held_out.images), options.k)
    progress("comparing", 0, 2)
    found = compare_manifolds(generated, real)
    progress("comparing", 1, 2)
    return _Measured(found, compare_manifolds(floor, real), held_out)


def _reference_scores(
    manifest: Manifest, real: LabelledImages, options: AuditOptions, progress: Progress
) -> ReferenceScores | None:
    """The guiding classifier on the real images; None where its weights are not within reach of this machine."""
    model = manifest.model
    try:
        hashes = (model.checkpoint_sha256, model.classifier_sha256)
        place = resolve_device(options.device)
        models = load_models(manifest.preset, model.checkpoint, model.classifier, hashes, place, "exact")
    except CheckpointError:
        return None

    def compute() -> dict[str, NDArray[Any]]:
        parts = []
        for start in range(0, len(real), options.batch):
            progress("scoring the reference", start, len(real))
            images = torch.tensor(real.images[start : start + options.batch]).to(place)
            labels = torch.tensor(real.labels[start : start + options.batch]).to(place)
            scores = score_images(models.classifier, images, labels)
            parts.append((scores.confidence, scores.entropy, scores.predicted_id))
        columns = [
            np.concatenate([torch.as_tensor(a).cpu().numpy() for a in column]) for column in zip(*parts, strict=True)
        ]
        return dict(zip(("confidence", "entropy", "predicted_id"), columns, strict=True))

    found = cached(("scores", models.classifier_sha256, real.sha256()), compute)
    return ReferenceScores(
        np.asarray(found["confidence"], np.float64),
        np.asarray(found["entropy"], np.float64),
        np.asarray(found["predicted_id"], np.int64),
    )


def _result(
    run: RunData,
    reference: Reference | None,
    scores: ReferenceScores | None,
    measured: _Measured | None,
    extractor: Extractor,
    options: AuditOptions,
) -> dict[str, Any]:
    preset, labels = run.manifest.preset, None if reference is None else reference.real.labels
    metrics: dict[str, Any] = {}
    histograms = {
        "confidence": histogram("probability", run.rows.confidence, scores.confidence if scores else None, 1.0),
        "entropy": histogram(
            "nats", run.rows.entropy, scores.entropy if scores else None, math.log(preset.classifier_classes)
        ),
    }
    per_class = class_table(preset.class_names, run.manifest.counts, run.rows, scores, labels)
    if measured is not None and labels is not None:
        hoods = (measured.found.neighborhood, measured.floor.neighborhood)
        counts = Counts(len(run.measured), len(labels), len(measured.held_out))
        metrics = metric_entries(measured.found, measured.floor, extractor, options.k, counts)
        histograms["rarity"] = histogram("feature distance", hoods[0].rarity, hoods[1].rarity)
        add_neighbor_columns(per_class, run.measured.class_id, labels, hoods)
    metrics["on_class_rate"] = on_class_entry(run.rows, scores, labels)
    return {
        "format": FORMAT,
        "metrics": metrics,
        "histograms": histograms,
        "per_class": per_class,
        "provenance": _provenance(run, reference, extractor, options),
    }


def _provenance(
    run: RunData, reference: Reference | None, extractor: Extractor, options: AuditOptions
) -> dict[str, Any]:
    return {
        "run": run.manifest.name,
        "manifest_digest": run.manifest.digest,
        "preset": run.manifest.preset.name,
        "sealed": run.complete,
        "planned": run.manifest.total,
        "committed": len(run.rows),
        "measured": len(run.measured),
        "not_accepted": int((~run.rows.accepted).sum()),
        "checkpoint_sha256": run.weights[0],
        "classifier_sha256": run.weights[1],
        "guidance": [term.name for term in run.manifest.terms],
        "sampler": f"{run.manifest.settings.method}, {run.manifest.settings.steps} steps",
        "extractor": extractor.name,
        "extractor_layer": extractor.layer,
        "extractor_sha256": extractor.digest,
        "preprocessing": extractor.preprocessing,
        "k": options.k,
        "reference": None if reference is None else reference.source,
        "reference_count": 0 if reference is None else len(reference.real),
        "reference_sha256": None if reference is None else reference.real.sha256(),
        "device": options.device,
        "manifest": run.manifest.text,
        "versions": {name: version(name) for name in ("torch", "torch-fidelity", "numpy")},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
