"""Builds the content of metrics.json from the run, the reference and the measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from rarefy.audit.features.cache import array_digest
from rarefy.audit.features.scores import ReferenceScores
from rarefy.audit.inputs.dataset import RunData
from rarefy.audit.inputs.reference import Reference
from rarefy.audit.measure import Compared, Measured
from rarefy.audit.memory import Memory
from rarefy.audit.metrics.assembly import GENERATED, REAL, SetEstimates
from rarefy.audit.metrics.baseline import Baseline, summarize
from rarefy.audit.metrics.bootstrap import Estimate, chosen_rows, estimate_mean, fraction_interval
from rarefy.audit.metrics.kinds import FRACTIONS, METRIC_KINDS, metric_name
from rarefy.audit.metrics.summary import Histogram, histogram, mean, wasserstein_1
from rarefy.audit.metrics.tail import Tail
from rarefy.audit.metrics.vendi import class_scores
from rarefy.audit.schema import (
    FORMAT,
    AuditResult,
    ClassRow,
    FeatureMap,
    MetricEntry,
    Provenance,
    SuspectedCopy,
    TailSummary,
)
from rarefy.audit.sides import Setting, Sides
from rarefy.audit.utility.measure import Answer
from rarefy.gates import Gate, Reading, check_gates, gate_verdict
from rarefy.models.folder import fast_errors

LIBRARIES = ("torch", "torch-fidelity", "scikit-learn", "numpy")
ON_CLASS, ON_CLASS_GUIDING = "on_class_rate", "on_class_guiding"
MAP_POINTS = 2000
MAP_DIGITS = 4

Counts = tuple[int, int, int]  # generated, real and baseline images
Source = tuple[str, str, int | None]  # extractor, layer and k
Value = TypeVar("Value")


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
    metrics, estimates = ({}, {}) if measured is None else _metrics(measured, setting)
    if run.judged is not None:
        estimates[ON_CLASS], metrics[ON_CLASS] = _on_class_judged(run, run.judged, scores, labels)
    if run.scored:
        guiding = ON_CLASS if run.judged is None else ON_CLASS_GUIDING
        estimates[guiding], metrics[guiding] = _on_class(run, scores, labels)
    per_class = _class_rows(run)
    if scores is not None and labels is not None:
        _add_scores(per_class, run, scores, labels)
    if measured is not None:
        _add_neighbors(per_class, measured)
        _add_diversity(per_class, measured)
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


def _metrics(measured: Measured, setting: Setting) -> tuple[dict[str, MetricEntry], dict[str, Estimate]]:
    compared = Compared(setting, measured.sides, measured.tail, measured.of_run, measured.of_draws)
    source, counts = _source(setting), _counts(measured.sides)
    utility = measured.utility
    entries = _compared_entries(compared) | _memory_entries(measured.memory, source, counts)
    of_kinds = {**measured.of_run.estimates, **measured.memory.of_run}
    if utility is not None:
        entries |= _utility_entries(utility, source)
        of_kinds |= utility.gains
    return _named(entries, setting), _named(of_kinds, setting)


def other_metrics(compared: Compared) -> dict[str, MetricEntry]:
    """The metrics in the features of a further extractor, by name."""
    return _named(_compared_entries(compared), compared.setting)


def _named(values: Mapping[str, Value], setting: Setting) -> dict[str, Value]:
    return {metric_name(kind, setting.extractor.name): value for kind, value in values.items()}


def _source(setting: Setting) -> Source:
    return setting.extractor.name, setting.extractor.layer, setting.k


def _counts(sides: Sides) -> Counts:
    return len(sides.generated), len(sides.real), len(sides.draws[0])


def _compared_entries(compared: Compared) -> dict[str, MetricEntry]:
    """Each metric that compares features, with its baseline, by kind."""
    of_run, of_draws = compared.of_run, compared.of_draws
    source, counts = _source(compared.setting), _counts(compared.sides)
    entries = {
        kind: _entry(kind, estimate, _baseline(kind, of_draws), source, counts)
        for kind, estimate in of_run.estimates.items()
    }
    entries["kid"] = replace(entries["kid"], std=of_run.kid_std, floor_std=of_draws[0].kid_std)
    entries["lof"] = replace(entries["lof"], sample_count=of_run.lof_count)
    return entries


def _baseline(kind: str, of_draws: Sequence[SetEstimates]) -> Baseline:
    return summarize([draw.estimates[kind] for draw in of_draws], kind in FRACTIONS)


def _memory_entries(memory: Memory, source: Source, counts: Counts) -> dict[str, MetricEntry]:
    """The metrics of memorisation. Their baseline is of real images that no training step saw."""
    counts = counts[0], memory.summary.count, memory.baseline_count
    return {
        kind: _entry(kind, estimate, _one_draw(kind, memory.of_baseline), source, counts)
        for kind, estimate in memory.of_run.items()
    }


def _utility_entries(utility: Answer, source: Source) -> dict[str, MetricEntry]:
    """What the generated images add in training. The baseline is what equally many real images add."""
    return {
        kind: _entry(kind, estimate, _one_draw(kind, utility.baselines), source, utility.counts)
        for kind, estimate in utility.gains.items()
    }


def _one_draw(kind: str, estimates: Mapping[str, Estimate]) -> Baseline | None:
    """The baseline of a single draw, if it has this metric."""
    return summarize([estimates[kind]], kind in FRACTIONS) if kind in estimates else None


def _on_class(
    run: RunData, scores: ReferenceScores | None, labels: NDArray[np.int64] | None
) -> tuple[Estimate, MetricEntry]:
    """How often the classifier predicts the requested class; the baseline is its accuracy on the real images."""
    estimate = estimate_mean(run.rows.predicted_id == run.rows.class_id, GENERATED, run.rows.class_id)
    baseline = None
    if scores is not None and labels is not None:
        baseline = summarize([estimate_mean(scores.predicted_id == labels, REAL, labels)], True)
    real_count = 0 if labels is None else len(labels)
    counts = len(run.rows), real_count, real_count
    return estimate, _entry(ON_CLASS, estimate, baseline, ("guiding classifier", "softmax at t = 0", None), counts)


def _on_class_judged(
    run: RunData, judged: NDArray[np.int64], scores: ReferenceScores | None, labels: NDArray[np.int64] | None
) -> tuple[Estimate, MetricEntry]:
    """How often the judge sees the requested class in the measured images; the baseline is its accuracy on real."""
    class_ids, baseline = run.measured.class_id, None
    estimate = estimate_mean(judged == class_ids, GENERATED, class_ids)
    if scores is not None and scores.judged_id is not None and labels is not None:
        baseline = summarize([estimate_mean(scores.judged_id == labels, REAL, labels)], True)
    real_count = 0 if labels is None else len(labels)
    counts = len(run.measured), real_count, real_count
    return estimate, _entry(ON_CLASS, estimate, baseline, ("judge", "most probable class", None), counts)


def _entry(kind: str, estimate: Estimate, baseline: Baseline | None, source: Source, counts: Counts) -> MetricEntry:
    extractor, layer, k = source
    generated_count, real_count, baseline_count = counts
    return MetricEntry(
        value=estimate.value,
        interval=estimate.interval,
        interval_over=estimate.over if estimate.interval else None,
        floor=None if baseline is None else baseline.value,
        floor_interval=None if baseline is None else baseline.interval,
        better=METRIC_KINDS[kind].better,
        extractor=extractor,
        layer=layer,
        k=k if METRIC_KINDS[kind].uses_k else None,
        generated_count=generated_count,
        real_count=real_count,
        floor_count=baseline_count,
        floor_draws=None if baseline is None else baseline.draws,
        floor_spread=None if baseline is None else baseline.spread,
    )


def _class_rows(run: RunData) -> list[ClassRow]:
    """One row per planned class, from the run's metadata; on-class rates are the judge's if there is one."""
    table, rows, manifest = [], run.rows, run.manifest
    for class_id, planned in sorted(manifest.counts.items()):
        own = rows.class_id == class_id
        drawn = int((rows.candidate[own] + 1).sum())
        scored = own if run.scored else own & False
        hits = rows.predicted_id[scored] == class_id
        if run.judged is not None:
            hits = run.judged[run.measured.class_id == class_id] == class_id
        rate, interval = fraction_interval(hits)
        table.append(
            ClassRow(
                class_id=class_id,
                class_name=manifest.preset.class_name(class_id),
                planned=planned,
                count=int(own.sum()),
                on_class_rate=rate,
                on_class_rate_interval=interval,
                confidence=mean(rows.confidence[scored]),
                entropy=mean(rows.entropy[scored]),
                acceptance_rate=int(rows.accepted[own].sum()) / drawn if manifest.accept and drawn else None,
            )
        )
    return table


def _add_scores(table: list[ClassRow], run: RunData, scores: ReferenceScores, labels: NDArray[np.int64]) -> None:
    """Add each class's scores of the real images, and the distance of the generated images' scores from them."""
    for row in table:
        own, real = run.rows.class_id == row.class_id, labels == row.class_id
        chosen = scores.predicted_id if scores.judged_id is None else scores.judged_id
        row.reference_on_class_rate = mean(chosen[real] == row.class_id)
        row.reference_confidence = mean(scores.confidence[real])
        row.reference_entropy = mean(scores.entropy[real])
        row.confidence_w1 = wasserstein_1(run.rows.confidence[own], scores.confidence[real])
        row.entropy_w1 = wasserstein_1(run.rows.entropy[own], scores.entropy[real])


def _add_neighbors(table: list[ClassRow], measured: Measured) -> None:
    """Add precision, recall, tail recall and coverage of each class, with the real baseline's where it has them."""
    of_run, draws = measured.of_run.neighborhood, [draw.neighborhood for draw in measured.of_draws]
    for row in table:
        own, real = measured.run.measured.class_id == row.class_id, measured.real_images.labels == row.class_id
        tail = real & measured.tail.members
        row.copies = mean(measured.twins.copied[own])
        row.precision, row.precision_interval = fraction_interval(of_run.balls[own] > 0)
        row.recall, row.recall_interval = fraction_interval(of_run.recalled[real])
        row.recall_floor = mean(np.array([draw.recalled[real] for draw in draws]))
        row.tail_recall, row.tail_recall_interval = fraction_interval(of_run.recalled[tail])
        row.tail_recall_floor = mean(np.array([draw.recalled[tail] for draw in draws]))
        row.coverage, row.coverage_interval = fraction_interval(of_run.covered[real])
        row.coverage_floor = mean(np.array([draw.covered[real] for draw in draws]))


def _add_diversity(table: list[ClassRow], measured: Measured) -> None:
    """Add each class's Vendi score with its baseline, and the accuracy that the class gains by the generated images."""
    of_run, *of_draws = (
        class_scores(side.manifold.features, side.labels) for side in (measured.sides.generated, *measured.sides.draws)
    )
    utility = measured.utility
    for row in table:
        row.vendi = of_run.get(row.class_id)
        row.vendi_floor = mean(np.array([scores[row.class_id] for scores in of_draws if row.class_id in scores]))
        if utility is not None:
            row.utility = utility.class_gains.get(row.class_id)
            row.utility_real = utility.class_accuracies.get(row.class_id)


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
    )
