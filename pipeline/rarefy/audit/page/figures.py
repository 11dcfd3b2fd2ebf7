"""The content of the audit's page as plain values: verdict, notes, and the class table with its colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rarefy.audit.page.templates import EN_DASH, number
from rarefy.audit.schema import AuditResult, ClassRow, MetricEntry, TailSummary

CLOSE, USABLE = 0.9, 0.75
HEADLINES = {
    "close": "Close to real data",
    "usable": "Usable, but short of real data",
    "far": "Far from real data",
    "none": "No real images to compare with",
}
FULL_HEAT = 55  # percent of the colour
SMALL_SET = 5000


@dataclass(frozen=True)
class Verdict:
    """level: close, usable, far or none."""

    level: str
    headline: str
    lines: list[str]


@dataclass(frozen=True)
class ClassColumn:
    """A column of the class table. baseline: the column of the real images; heat: how a cell's colour is computed.

    short: how far the value is below its baseline; distance: the value over half of its histogram's range.
    """

    key: str
    label: str
    baseline: str | None = None
    heat: str | None = None
    hint: str = ""


@dataclass(frozen=True)
class ClassCell:
    """heat: percent of the colour."""

    value: float | None
    baseline: float | None
    interval: list[float] | None
    heat: int


CLASS_COLUMNS = (
    ClassColumn("count", "Images", "planned", "short", "small number: images planned, if different"),
    ClassColumn("acceptance_rate", "Accepted", hint="images kept / images drawn by the manifest's filter"),
    ClassColumn("recall", "Recall", "recall_floor", "short"),
    ClassColumn("coverage", "Coverage", "coverage_floor", "short"),
    ClassColumn("precision", "Precision"),
    ClassColumn("on_class_rate", "On class", "reference_on_class_rate", "short"),
    ClassColumn("confidence", "Confidence", "reference_confidence"),
    ClassColumn("confidence_w1", "Shift", heat="distance", hint="Wasserstein-1 distance to the real confidences"),
    ClassColumn("entropy", "Entropy", "reference_entropy", hint="nats"),
    ClassColumn("entropy_w1", "Shift", heat="distance", hint="Wasserstein-1 distance to the real entropies, nats"),
)


def verdict(result: AuditResult) -> Verdict:
    """Judge the set by the worse of recall and precision, each relative to its real baseline."""
    metrics, tail = result.metrics, result.tail
    if tail is None:
        lines = ["Give the audit a folder of real images to measure recall and precision with their real baselines."]
        return Verdict("none", HEADLINES["none"], lines)
    recall, precision, tail_recall, rarity = (metrics[k] for k in ("recall", "precision", "tail_recall", "rarity"))
    worst = min(_ratio(recall), _ratio(precision))
    level = "close" if worst >= CLOSE else "usable" if worst >= USABLE else "far"
    lines = [
        f"The set covers {_percent(recall.value)} of the real test images; the same number of real images covers "
        f"{_percent(recall.floor)}. {_tail_words(tail)} it covers {_percent(tail_recall.value)} "
        f"(real images: {_percent(tail_recall.floor)}).",
        f"{_percent(precision.value)} of its images lie within the real data "
        f"(real images: {_percent(precision.floor)}); their mean rarity is {number(rarity.value)} "
        f"(real images: {number(rarity.floor)}).",
    ]
    return Verdict(level, HEADLINES[level], lines)


def notes(result: AuditResult) -> list[str]:
    """What a reader must know before quoting the numbers."""
    run, lines = result.provenance, []
    recall = result.metrics.get("recall")
    if not run.sealed:
        lines.append(f"The data set is not sealed: {run.committed:,} of {run.planned:,} images are committed.")
    if run.measured < run.committed:
        lines.append(f"Measured on {run.measured:,} of {run.committed:,} images, from evenly spaced shards.")
    if run.not_accepted:
        lines.append(f"{run.not_accepted:,} images did not pass the manifest's filter and were kept.")
    if recall and recall.generated_count != recall.floor_count:
        lines.append(
            f"The real baseline has {recall.floor_count:,} images, the generated set {recall.generated_count:,}."
        )
    if run.classifier_sha256 is None:
        lines.append("The model has no classifier, so there is no confidence, entropy or on-class rate.")
    elif run.reference and result.metrics["on_class_rate"].floor is None:
        lines.append(
            "The audit could not use the classifier, whose weights or code it lacked: its scores have no real baseline."
        )
    if run.precision == "fast":
        lines.append(_fast_words(run.fast_errors))
    if recall and recall.generated_count < SMALL_SET:
        lines.append(
            "With few images FID is biased upward and coverage downward: compare both with the real baseline of the "
            "same size, never with published numbers."
        )
    return lines


def class_table(result: AuditResult) -> tuple[list[ClassColumn], list[tuple[str, list[ClassCell]]]]:
    """The columns with any value, and each class's name with its cells."""
    classes = result.per_class
    columns = [column for column in CLASS_COLUMNS if any(getattr(row, column.key) is not None for row in classes)]
    ranges = {name: table.edges[-1] for name, table in result.histograms.items()}
    return columns, [(row.class_name, [_cell(row, column, ranges) for column in columns]) for row in classes]


def heat_percent(strength: float) -> int:
    """Percent of the colour for a strength from 0 to 1; values beyond are clipped."""
    return round(FULL_HEAT * min(1.0, max(0.0, strength)))


def _cell(row: ClassRow, column: ClassColumn, ranges: dict[str, float]) -> ClassCell:
    value = getattr(row, column.key)
    baseline = getattr(row, column.baseline) if column.baseline else None
    strength = 0.0
    if value is not None and column.heat == "distance":
        strength = 2 * value / ranges[column.key.removesuffix("_w1")]
    elif value is not None and column.heat == "short" and baseline:
        strength = 1 - value / baseline
    if column.key == "count" and baseline == value:
        baseline = None
    return ClassCell(value, baseline, getattr(row, f"{column.key}_interval", None), heat_percent(strength))


def _fast_words(errors: dict[str, Any] | None) -> str:
    """What bfloat16 changes in the model's images, as measured for an embedded model."""
    mode = "Sampled in fast mode (bfloat16 where the device supports it)"
    if errors is None:
        return f"{mode}; its error against exact mode was not measured for this model."
    (eps_low, eps_high), (low, high) = errors["eps"], errors["gradient"]
    return (
        f"{mode}. Against exact mode, in the worst case over all guidance terms of this model: eps differs by "
        f"{eps_low:.1%} to {eps_high:.1%} of its norm, the guidance by {low:.1%} to {high:.1%}, "
        f"{errors['pixels_above_1']:.1%} of the pixels by more than one level."
    )


def _tail_words(tail: TailSummary) -> str:
    if tail.rule == "keys":
        return f"Of the {tail.count:,} listed images"
    return f"Of the {tail.share:.0%} {'rarest' if tail.rule == 'avgknn' else 'with the lowest confidence'}"


def _ratio(entry: MetricEntry) -> float:
    return entry.value / entry.floor if entry.floor else 0.0


def _percent(value: float | None) -> str:
    return EN_DASH if value is None else f"{value:.0%}"
