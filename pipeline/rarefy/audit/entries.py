"""The entries of metrics.json: each metric with its interval and its real baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.scores import ReferenceScores
from rarefy.audit.inputs.dataset import RunData
from rarefy.audit.measure import Compared, Measured
from rarefy.audit.memory import Memory
from rarefy.audit.metrics.assembly import GENERATED, REAL, SetEstimates
from rarefy.audit.metrics.baseline import Baseline, summarize
from rarefy.audit.metrics.bootstrap import Estimate, estimate_mean
from rarefy.audit.metrics.kinds import FRACTIONS, METRIC_KINDS, metric_name
from rarefy.audit.schema import MetricEntry
from rarefy.audit.sides import Setting, Sides
from rarefy.audit.utility.measure import Answer

ON_CLASS, ON_CLASS_GUIDING = "on_class_rate", "on_class_guiding"

Labels = NDArray[np.int64]
Counts = tuple[int, int, int]  # generated, real and baseline images
Source = tuple[str, str, int | None]  # extractor, layer and k
Value = TypeVar("Value")

JUDGE: Source = ("judge", "most probable class", None)
GUIDING: Source = ("guiding classifier", "softmax at t = 0", None)


def metric_entries(
    run: RunData, scores: ReferenceScores | None, labels: Labels | None, measured: Measured | None, setting: Setting
) -> tuple[dict[str, MetricEntry], dict[str, Estimate]]:
    """All metrics of the main extractor, the judge and the classifier, and their estimates, by name.

    labels: of the real images; measured: None without real images.
    """
    metrics, estimates = ({}, {}) if measured is None else _metrics(measured, setting)
    if run.judged is not None:
        predicted = run.judged, run.measured.class_id
        of_real = None if scores is None else scores.judged_id
        estimates[ON_CLASS], metrics[ON_CLASS] = _on_class(ON_CLASS, JUDGE, predicted, of_real, labels)
    if run.scored:
        kind = ON_CLASS if run.judged is None else ON_CLASS_GUIDING
        predicted = run.rows.predicted_id, run.rows.class_id
        of_real = None if scores is None else scores.predicted_id
        estimates[kind], metrics[kind] = _on_class(kind, GUIDING, predicted, of_real, labels)
    return metrics, estimates


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
    kind: str, source: Source, predicted: tuple[Labels, Labels], of_real: Labels | None, labels: Labels | None
) -> tuple[Estimate, MetricEntry]:
    """How often a classifier predicts the requested class; the baseline is its accuracy on the real images.

    predicted: its classes for the images, and the requested ones; of_real, labels: its classes for the real images,
    None if it did not see them, and the true ones.
    """
    found, class_ids = predicted
    estimate, baseline = estimate_mean(found == class_ids, GENERATED, class_ids), None
    if of_real is not None and labels is not None:
        baseline = summarize([estimate_mean(of_real == labels, REAL, labels)], True)
    real_count = 0 if labels is None else len(labels)
    return estimate, _entry(kind, estimate, baseline, source, (len(class_ids), real_count, real_count))


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
