"""Builds the content of metrics.json from the run, the reference and the measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
from sklearn.decomposition import PCA

from rarefy.audit.class_rows import class_rows
from rarefy.audit.entries import metric_entries, other_metrics
from rarefy.audit.features.cache import array_digest
from rarefy.audit.features.scores import ReferenceScores
from rarefy.audit.inputs.dataset import RunData
from rarefy.audit.inputs.reference import Reference
from rarefy.audit.measure import Compared, Measured
from rarefy.audit.metrics.bootstrap import Estimate, chosen_rows
from rarefy.audit.metrics.summary import Histogram, histogram
from rarefy.audit.metrics.tail import Tail
from rarefy.audit.schema import (
    FORMAT,
    AuditResult,
    FeatureMap,
    Provenance,
    SuspectedCopy,
    TailSummary,
)
from rarefy.audit.sides import Setting
from rarefy.gates import Gate, Reading, check_gates, gate_verdict
from rarefy.models.folder import fast_errors

LIBRARIES = ("torch", "torch-fidelity", "scikit-learn", "numpy")
MAP_POINTS = 2000
MAP_DIGITS = 4


def build_result(
    run: RunData,
    reference: Reference | None,
    scores: ReferenceScores | None,
    measured: Measured | None,
    gates: Sequence[Gate],
    setting: Setting,
    others: Sequence[Compared] = (),
) -> tuple[AuditResult, dict[str, Estimate]]:
    """The result, and its estimates by metric name.

    ``run.measured`` has only the measured images. others: the comparisons in the features of further extractors.
    """
    labels = None if reference is None else reference.real.labels
    metrics, estimates = metric_entries(run, scores, labels, measured, setting)
    per_class = class_rows(run, scores, labels, measured)
    readings = {name: Reading(entry.value, entry.interval, entry.floor) for name, entry in metrics.items()}
    checks = check_gates(gates, readings, [vars(row) for row in per_class])
    problems = [*run.problems, *(() if measured is None else measured.problems)]
    return AuditResult(
        format=FORMAT,
        verdict=gate_verdict(checks),
        gates=checks,
        partial=bool(problems),
        problems=problems,
        metrics=metrics,
        tail=None if measured is None else _tail_summary(measured.tail),
        histograms=_histograms(run, scores, measured),
        per_class=per_class,
        copies=[] if measured is None else _copies(measured),
        map=None if measured is None else _feature_map(measured),
        provenance=_provenance(run, reference, setting),
        memorization=None if measured is None else measured.memory.summary,
        utility=[] if measured is None or measured.utility is None else measured.utility.tables,
        other_extractors={compared.setting.extractor.name: other_metrics(compared) for compared in others},
    ), estimates


def _tail_summary(tail: Tail) -> TailSummary:
    return TailSummary(tail.rule, float(tail.members.mean()), int(tail.members.sum()), array_digest(tail.members))


def _histograms(run: RunData, scores: ReferenceScores | None, measured: Measured | None) -> dict[str, Histogram]:
    tables = {}
    if run.scored:
        nats = math.log(run.manifest.preset.classifier_classes)
        of_real = scores.confidence if scores else None
        tables["confidence"] = histogram("probability", run.rows.confidence, of_real, 1.0)
        tables["entropy"] = histogram("nats", run.rows.entropy, scores.entropy if scores else None, nats)
    if measured is not None:
        sides = (measured.of_run.neighborhood.rarity, measured.of_baseline.neighborhood.rarity)
        tables["rarity"] = histogram("feature distance", *sides)
    return tables


def _copies(measured: Measured) -> list[SuspectedCopy]:
    rows = measured.run.measured
    return [
        SuspectedCopy(
            key=str(rows.key[twin.row]),
            class_id=int(rows.class_id[twin.row]),
            kind=twin.kind,
            distance=twin.distance,
            ratio=twin.ratio,
            other=measured.other_key(twin),
        )
        for twin in measured.twins.listed
    ]


def _feature_map(measured: Measured) -> FeatureMap:
    """PCA of at most 2,000 random real rows, with at most 2,000 generated rows projected onto it."""
    real, run = measured.sides.real.manifold.features, measured.run.measured
    real_rows, own_rows = chosen_rows(len(real), MAP_POINTS), chosen_rows(len(run), MAP_POINTS)
    model = PCA(n_components=2, svd_solver="randomized", random_state=0).fit(real[real_rows])
    real_points, own_points = (
        np.round(model.transform(features).astype(float), MAP_DIGITS).tolist()
        for features in (real[real_rows], measured.sides.generated.manifold.features[own_rows])
    )
    labels, classes = measured.real_images.labels[real_rows].tolist(), run.class_id[own_rows].tolist()
    keys = run.key[own_rows].tolist()
    return FeatureMap(
        method="pca",
        explained=[float(ratio) for ratio in model.explained_variance_ratio_],
        generated=[[*point, class_id, key] for point, class_id, key in zip(own_points, classes, keys, strict=True)],
        real=[[*point, class_id] for point, class_id in zip(real_points, labels, strict=True)],
    )


def _provenance(run: RunData, reference: Reference | None, setting: Setting) -> Provenance:
    manifest, extractor = run.manifest, setting.extractor
    return Provenance(
        run=manifest.name,
        manifest_digest=manifest.digest,
        preset=manifest.preset.name,
        sealed=run.complete,
        planned=manifest.total,
        committed=len(run.rows),
        measured=len(run.measured),
        not_accepted=int((~run.rows.accepted).sum()),
        checkpoint_sha256=run.weights[0],
        classifier_sha256=run.weights[1],
        guidance=[term.name for term in manifest.terms],
        precision=manifest.precision,
        fast_errors=fast_errors(*run.weights) if manifest.precision == "fast" else None,
        sampler=manifest.settings.text(),
        reference=None if reference is None else reference.source,
        reference_count=0 if reference is None else len(reference.real),
        reference_resized=0 if reference is None else reference.resized,
        reference_sha256=None if reference is None else reference.real.sha256(),
        manifest=manifest.text,
        versions={name: version(name) for name in LIBRARIES},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        extractor=extractor.name,
        extractor_layer=extractor.layer,
        extractor_sha256=extractor.digest,
        preprocessing=extractor.preprocessing,
        k=setting.k,
        device=setting.device,
        duration_s=round(time.monotonic() - setting.started, 1),
        filled=run.filled,
        excluded=run.excluded,
    )
