"""The content of metrics.json, from what was read and measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rarefy.audit.inputs.dataset import RunData
from rarefy.audit.inputs.reference import Reference
from rarefy.audit.inputs.scores import ReferenceScores
from rarefy.audit.measure import Measured
from rarefy.audit.metrics.bootstrap import Estimate
from rarefy.audit.metrics.comparison import metric_name
from rarefy.audit.metrics.summary import (
    Counts,
    add_neighbor_columns,
    add_score_columns,
    class_table,
    histogram,
    metric_entries,
    on_class_entry,
)
from rarefy.audit.page.projection import feature_map
from rarefy.audit.schema import FORMAT
from rarefy.gates import Gate, check_gates, gate_verdict
from rarefy.models.folder import fast_errors

LIBRARIES = ("torch", "torch-fidelity", "scikit-learn", "numpy")
ON_CLASS = "on_class_rate"


def build_result(
    run: RunData,
    reference: Reference | None,
    scores: ReferenceScores | None,
    measured: Measured | None,
    gates: Sequence[Gate],
) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """Everything but the provenance of features, and the estimates behind it by metric name."""
    labels = None if reference is None else reference.real.labels
    metrics, estimates = ({}, {}) if measured is None else _metrics(measured)
    estimates[ON_CLASS], metrics[ON_CLASS] = on_class_entry(run.rows, scores, labels)
    preset, manifest = run.manifest.preset, run.manifest
    per_class = class_table(preset.class_names, manifest.counts, run.rows, manifest.accept is not None)
    if scores is not None and labels is not None:
        add_score_columns(per_class, run.rows, scores, labels)
    if measured is not None:
        hoods = (measured.found.neighborhood, measured.floor.neighborhood)
        add_neighbor_columns(per_class, run.measured.class_id, measured.real_images.labels, hoods)
    checks = check_gates(gates, metrics, per_class)
    problems = [*run.problems, *(() if measured is None else measured.problems)]
    result = {
        "format": FORMAT,
        "verdict": gate_verdict(checks),
        "gates": checks,
        "partial": bool(problems),
        "problems": [dataclasses.asdict(problem) for problem in problems],
        "metrics": metrics,
        "tail": None if measured is None else measured.tail.summary(),
        "histograms": _histograms(run, scores, measured),
        "per_class": per_class,
        "copies": [] if measured is None else _copies(measured),
        "map": None if measured is None else feature_map(measured),
        "provenance": _provenance(run, reference),
    }
    return result, estimates


def _metrics(measured: Measured) -> tuple[dict[str, Any], dict[str, Estimate]]:
    found, floor, extractor = measured.found, measured.floor, measured.extractor
    counts = Counts(len(measured.run.measured), len(measured.real_images), len(measured.floor_images))
    entries = metric_entries(measured.estimates, measured.floor_estimates, extractor, measured.real.k, counts)
    entries[metric_name("kid", extractor.name)] |= {"std": found.kid_std, "floor_std": floor.kid_std}
    entries["lof"]["sample_count"] = found.lof_count
    return entries, {metric_name(kind, extractor.name): value for kind, value in measured.estimates.items()}


def _histograms(run: RunData, scores: ReferenceScores | None, measured: Measured | None) -> dict[str, Any]:
    nats = math.log(run.manifest.preset.classifier_classes)
    tables = {
        "confidence": histogram("probability", run.rows.confidence, scores.confidence if scores else None, 1.0),
        "entropy": histogram("nats", run.rows.entropy, scores.entropy if scores else None, nats),
    }
    if measured is not None:
        sides = (measured.found.neighborhood.rarity, measured.floor.neighborhood.rarity)
        tables["rarity"] = histogram("feature distance", *sides)
    return tables


def _copies(measured: Measured) -> list[dict[str, Any]]:
    rows = measured.run.measured
    return [
        {
            "key": str(rows.key[twin.row]),
            "class_id": int(rows.class_id[twin.row]),
            "kind": twin.kind,
            "distance": twin.distance,
            "ratio": twin.ratio,
            "other": measured.other_name(twin),
        }
        for twin in measured.twins.listed
    ]


def _provenance(run: RunData, reference: Reference | None) -> dict[str, Any]:
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
        "precision": run.manifest.precision,
        "fast_errors": fast_errors(*run.weights) if run.manifest.precision == "fast" else None,
        "sampler": f"{run.manifest.settings.method}, steps {run.manifest.settings.steps}",
        "reference": None if reference is None else reference.source,
        "reference_count": 0 if reference is None else len(reference.real),
        "reference_resized": 0 if reference is None else reference.resized,
        "reference_sha256": None if reference is None else reference.real.sha256(),
        "manifest": run.manifest.text,
        "versions": {name: version(name) for name in LIBRARIES},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
