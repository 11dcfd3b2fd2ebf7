"""Compares several audits under equal conditions: one table, differences from the first run, and their significance.

Significance: the replicates of both audits are subtracted, one by one. The spread of these
differences around their mean estimates what chance alone can do (Efron and Tibshirani 1993, ch. 16). p is the fraction
of replicates at least as far from that mean as the observed difference is from zero. The interval is the middle 95% of
the spread, shifted to the observed difference. Replicates with the same number use the same draw of the real images, so
both runs are compared with the same ones. Differences of one class are judged by the Wilson intervals of both fractions
(Newcombe 1998, method 10), which takes the runs for independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.current import read_current
from rarefy.audit.footing import check_footing
from rarefy.audit.metrics.kinds import metric_label, reading_order
from rarefy.audit.schema import AuditResult, ClassRow, MetricEntry
from rarefy.audit.tables import read_replicates
from rarefy.audit.verdict import judge
from rarefy.errors import OutputError, bad
from rarefy.shards.store import Store

FORMAT = "rarefy-compare-v1"
LEVEL = 0.05
# With fewer replicates, 5% of them are less than one.
FEWEST_REPLICATES = 20
CLASS_METRICS = {
    "recall": "recall_floor",
    "tail_recall": "tail_recall_floor",
    "coverage": "coverage_floor",
    "precision": "precision_floor",
    "on_class_rate": None,
}
SIGNIFICANCE = (
    f"A difference is marked if p < {LEVEL:g} (not corrected for the number of comparisons): other draws of both runs' "
    "images and of the real images would rarely give it. What training the models again would change is not included."
)

Replicates = dict[str, dict[int, float]]


@dataclass(frozen=True)
class Difference:
    """A run's value minus the first run's. Fields that need replicates are None without them.

    improved: None if the difference is not significant or neither direction is better. Where the value nearest to the
    real baseline is best, it is whether the run's value is nearer.
    """

    difference: float
    interval: list[float] | None
    p: float | None
    significant: bool | None
    improved: bool | None = None


@dataclass(frozen=True)
class ComparedRun:
    """One of the compared audits. verdict: of the gates; judgement: the headline of the audit's verdict."""

    label: str
    out: str
    images: int
    verdict: str
    judgement: str
    partial: bool
    preset: str
    sampler: str
    guidance: list[str]
    manifest_digest: str


@dataclass(frozen=True)
class ComparedMetric:
    """values, intervals, differences: one entry per run; the first run has no difference. floor: the real baseline."""

    metric: str
    label: str
    better: str
    floor: float | None
    floor_interval: list[float] | None
    values: list[float | None]
    intervals: list[list[float] | None]
    differences: list[Difference | None]


@dataclass(frozen=True)
class ClassValues:
    """One metric of one class: its real baseline, and one value and one difference per run.

    significant, improved: as in ``Difference``; None for the first run and where a value is missing.
    """

    floor: float | None
    values: list[float | None]
    differences: list[float | None]
    significant: list[bool | None]
    improved: list[bool | None]


@dataclass(frozen=True)
class ComparedClass:
    """One class; the fields after its name are CLASS_METRICS."""

    class_id: int
    class_name: str
    recall: ClassValues
    tail_recall: ClassValues
    coverage: ClassValues
    precision: ClassValues
    on_class_rate: ClassValues


@dataclass(frozen=True)
class Footing:
    """What all audits have in common; counts are numbers of images."""

    reference: str | None
    reference_sha256: str | None
    extractor: str
    extractor_layer: str
    extractor_sha256: str
    k: int
    generated_count: int
    real_count: int
    floor_count: int


@dataclass(frozen=True)
class CompareResult:
    """What ``rarefy compare --json`` prints; the other runs are compared with the first.

    significance: what a significant difference means, for people.
    """

    format: str
    runs: list[ComparedRun]
    metrics: list[ComparedMetric]
    per_class: list[ComparedClass]
    footing: Footing
    significance: str = SIGNIFICANCE


def compare_runs(outs: Sequence[str]) -> CompareResult:
    """Compare the audits in the output folders ``outs``.

    Raises OutputError for fewer than two folders or one without an audit; ShardError for files of another format and
    for audits that are not comparable, naming what differs.
    """
    if len(outs) < 2:
        raise OutputError(bad("runs", " ".join(outs), "two or more output folders"))
    stores = [Store(out) for out in outs]
    results = [read_current(store) for store in stores]
    labels = run_labels([result.provenance.run for result in results], outs)
    check_footing(dict(zip(labels, results, strict=True)))
    replicates = [read_replicates(store) for store in stores]
    return CompareResult(
        format=FORMAT,
        runs=[_run(*each) for each in zip(labels, outs, results, strict=True)],
        metrics=_metrics(results, replicates),
        per_class=_classes(results),
        footing=_footing(results[0]),
    )


def run_labels(names: Sequence[str], outs: Sequence[str]) -> list[str]:
    """The runs' names, with the folder in brackets where two are equal. Raises OutputError for a repeated folder."""
    plain = [out.rstrip("/") for out in outs]
    for out in plain:
        if plain.count(out) > 1:
            raise OutputError(f"runs: {out!r} was given twice; name each folder once")
    return [f"{name} ({out})" if names.count(name) > 1 else name for name, out in zip(names, plain, strict=True)]


def difference_of(first: dict[int, float], other: dict[int, float], observed: float) -> Difference:
    """Significance of an ``observed`` difference other - first, from replicates by number."""
    shared = sorted(first.keys() & other.keys())
    if len(shared) < FEWEST_REPLICATES:
        return Difference(observed, None, None, None)
    drawn = _values(other, shared) - _values(first, shared)
    noise = drawn - drawn.mean()
    low, high = observed + np.quantile(noise, [LEVEL / 2, 1 - LEVEL / 2])
    # The observed difference counts as a replicate, so p is never 0.
    p = (1 + int((np.abs(noise) >= abs(observed)).sum())) / (1 + len(noise))
    return Difference(observed, [float(low), float(high)], p, p < LEVEL)


def _run(label: str, out: str, result: AuditResult) -> ComparedRun:
    run = vars(result.provenance) | {"label": label, "out": out, "images": result.provenance.committed}
    run |= {"verdict": result.verdict, "judgement": judge(result).headline, "partial": result.partial}
    return ComparedRun(**{field.name: run[field.name] for field in fields(ComparedRun)})


def _footing(result: AuditResult) -> Footing:
    shared = vars(result.metrics["recall"]) | vars(result.provenance)
    return Footing(**{field.name: shared[field.name] for field in fields(Footing)})


def _metrics(results: Sequence[AuditResult], replicates: Sequence[Replicates]) -> list[ComparedMetric]:
    names = dict.fromkeys(name for result in results for name in result.metrics)
    return [
        _metric(name, [result.metrics.get(name) for result in results], [drawn.get(name, {}) for drawn in replicates])
        for name in reading_order(names)
    ]


def _metric(name: str, entries: Sequence[MetricEntry | None], replicates: Sequence[dict[int, float]]) -> ComparedMetric:
    values = [None if entry is None else entry.value for entry in entries]
    known = next(entry for entry in entries if entry is not None)
    differences: list[Difference | None] = [None]
    for value, drawn in zip(values[1:], replicates[1:], strict=True):
        gap = _gap(values[0], value)
        differences.append(None if gap is None else _judged(difference_of(replicates[0], drawn, gap), known, values[0]))
    return ComparedMetric(
        metric=name,
        label=metric_label(name),
        better=known.better,
        floor=known.floor,
        floor_interval=known.floor_interval,
        values=values,
        intervals=[None if entry is None else entry.interval for entry in entries],
        differences=differences,
    )


def _judged(difference: Difference, metric: MetricEntry, first: float | None) -> Difference:
    """The difference from the value ``first``, with its direction."""
    if not difference.significant or metric.better == "neither":
        return difference
    if metric.better == "nearest":
        if metric.floor is None or first is None:
            return difference
        nearer = abs(first + difference.difference - metric.floor) < abs(first - metric.floor)
        return replace(difference, improved=nearer)
    return replace(difference, improved=(difference.difference > 0) == (metric.better == "higher"))


def _classes(results: Sequence[AuditResult]) -> list[ComparedClass]:
    """Per class by name: ``check_footing`` ensures that all runs have the same classes."""
    tables = [{row.class_name: row for row in result.per_class} for result in results]
    return [_class([table[name] for table in tables]) for name in tables[0]]


def _class(rows: Sequence[ClassRow]) -> ComparedClass:
    compared = {}
    for metric, floor in CLASS_METRICS.items():
        values = [getattr(row, metric) for row in rows]
        gaps = [_gap(values[0], value) for value in values]
        marked = [significant_fractions(_fraction(rows[0], metric), _fraction(row, metric)) for row in rows]
        compared[metric] = ClassValues(
            floor=getattr(rows[0], floor) if floor else None,
            values=values,
            differences=[None, *gaps[1:]],
            significant=[None, *marked[1:]],
            improved=[None, *[gap > 0 if sure and gap else None for gap, sure in zip(gaps, marked, strict=True)][1:]],
        )
    return ComparedClass(rows[0].class_id, rows[0].class_name, **compared)


Fraction = tuple[float, list[float]]  # value and 95% interval


def significant_fractions(first: Fraction | None, other: Fraction | None) -> bool | None:
    """Whether Newcombe's 95% interval of the difference excludes 0; None if a fraction is missing."""
    if first is None or other is None:
        return None
    low, high = sorted((first, other))
    gap = high[0] - low[0]
    return bool(gap > np.hypot(high[0] - high[1][0], low[1][1] - low[0]))


def _fraction(row: ClassRow, metric: str) -> Fraction | None:
    value, interval = getattr(row, metric), getattr(row, f"{metric}_interval")
    return None if value is None or interval is None else (value, interval)


def _gap(first: float | None, other: float | None) -> float | None:
    return None if first is None or other is None else other - first


def _values(drawn: dict[int, float], numbers: list[int]) -> NDArray[np.float64]:
    return np.array([drawn[each] for each in numbers], dtype=np.float64)
