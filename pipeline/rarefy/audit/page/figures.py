"""The content of the audit's page as plain values: notes, what was measured with what, and sentences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rarefy.audit.metrics.kinds import metric_label
from rarefy.audit.page.templates import interval, number
from rarefy.audit.schema import AuditResult, MetricEntry, Training, Utility
from rarefy.gates import GateCheck, metric_kind

SMALL_SET = 5000
NEARER = "nearer to the training images than unseen real images are, which suggests copying"
AS_NEAR = "as near to the training images as unseen real images are, within the interval: no sign of copying"
FARTHER = "farther from the training images than unseen real images are: no sign of copying"
# What the page compares with plain sampling, the first one in a sentence.
AGAINST = ("rarity", "avg_knn", "recall", "tail_recall", "precision", "on_class_rate", "fid")


@dataclass(frozen=True)
class MeasuredWith:
    """What a metric was measured with; its fields are those of MetricEntry."""

    extractor: str
    layer: str
    k: int | None
    generated_count: int
    real_count: int
    floor_count: int

    @classmethod
    def of(cls, entry: MetricEntry) -> MeasuredWith:
        counts = entry.generated_count, entry.real_count, entry.floor_count
        return cls(entry.extractor, entry.layer, entry.k, *counts)

    def text(self) -> str:
        neighbours = f", k = {self.k}" if self.k else ""
        real = f", {self.real_count:,} real" if self.real_count else ""
        baseline = f" and {self.floor_count:,} images in the real baseline" if self.floor_count else ""
        return f"{self.extractor} {self.layer}{neighbours}; {self.generated_count:,} generated{real}{baseline}"


@dataclass(frozen=True)
class AgainstRow:
    """A metric of the set, of plain sampling and of real images."""

    label: str
    value: float
    plain: float
    real: float | None


def notes(result: AuditResult) -> list[str]:
    """What a reader must know before quoting the numbers."""
    run, lines = result.provenance, []
    recall = result.metrics.get("recall")
    if not run.sealed:
        lines.append(f"The data set is not sealed: {run.committed:,} of {run.planned:,} images are committed.")
    if run.measured < run.committed:
        lines.append(
            f"Features were measured on {run.measured:,} of {run.committed:,} images: at most as many per class as "
            "there are held-out real images, and at most --limit in all."
        )
    if run.not_accepted:
        lines.append(
            f"{run.not_accepted:,} of {run.committed:,} images did not pass the manifest's [accept] and were kept."
        )
    if run.filled:
        lines.append(
            f"{run.filled:,} of {run.committed:,} images are not acceptable to the manifest's [select]: they fill up "
            "classes that have too few such images."
        )
    if run.excluded:
        lines.append(
            f"{run.excluded:,} of {run.committed:,} images are on the exclusion list. The audit describes the whole "
            "set, these included."
        )
    if recall and recall.generated_count != recall.floor_count:
        lines.append(
            f"The real baseline has {recall.floor_count:,} images, the generated set {recall.generated_count:,}."
        )
    if run.classifier_sha256 is None:
        judged = "on_class_rate" in result.metrics
        missing = "confidence or entropy" if judged else "confidence, entropy or on-class rate"
        lines.append(f"The model has no classifier, so there is no {missing}.")
    elif run.reference and (scores := result.metrics.get("on_class_rate")) and scores.floor is None:
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


def common_setting(metrics: Iterable[MetricEntry]) -> MeasuredWith | None:
    """What most metrics were measured with; None without metrics."""
    settings = Counter(MeasuredWith.of(entry) for entry in metrics)
    return settings.most_common(1)[0][0] if settings else None


def own_setting(entry: MetricEntry, common: MeasuredWith) -> str:
    """What one metric was measured with, as far as it is not the common setting; empty if it is."""
    own = MeasuredWith.of(entry)
    parts = []
    if (own.extractor, own.layer) != (common.extractor, common.layer):
        parts.append(f"{own.extractor}, {own.layer}")
    if own.k and own.k != common.k:
        parts.append(f"k = {own.k}")
    for count, usual, what in (
        (own.generated_count, common.generated_count, "generated"),
        (own.real_count, common.real_count, "real"),
        (own.floor_count, common.floor_count, "in the real baseline"),
        (entry.sample_count or common.generated_count, common.generated_count, "scored per side"),
    ):
        if count != usual:
            parts.append(f"{count:,} {what}")
    return "; ".join(parts)


def against_rows(result: AuditResult) -> list[AgainstRow]:
    """The metrics that the audit and plain sampling have in common."""
    if result.against is None:
        return []
    found, plain = {kind: name for name in result.metrics if (kind := metric_kind(name))}, result.against.metrics
    names = [found[kind] for kind in AGAINST if kind in found and found[kind] in plain]
    return [
        AgainstRow(metric_label(name), result.metrics[name].value, plain[name], result.metrics[name].floor)
        for name in names
    ]


def against_words(result: AuditResult) -> str:
    """Whether the set is rarer than plain sampling, in one sentence; empty if that is not known."""
    if result.against is None or "rarity" not in result.metrics or "rarity" not in result.against.metrics:
        return ""
    own, plain = result.metrics["rarity"], result.against.metrics["rarity"]
    margin = math.hypot(_half(own.interval), _half(result.against.intervals.get("rarity")))
    words = "rarer than plain sampling" if own.value > plain else "less rare than plain sampling"
    if abs(own.value - plain) <= margin:
        words = "no rarer than plain sampling within the intervals"
    return f"Mean rarity {number(own.value)}, plain sampling {number(plain)}, real images {number(own.floor)}: {words}."


def _half(interval: Sequence[float] | None) -> float:
    """Half the width of an interval; 0 if there is none."""
    return 0.0 if interval is None else (interval[1] - interval[0]) / 2


def memorization_words(result: AuditResult) -> str:
    """What the images were compared with to find copies."""
    searched = result.memorization
    if searched is None:
        return "Images were compared with the reference and the held-out real images, not with the training set."
    what = f"Images were compared with {searched.count:,} images: {searched.source}"
    if searched.whole:
        return f"{what}."
    return f"{what}. This is not the model's whole training set: copies of its other images cannot be found."


def copying_words(result: AuditResult) -> str:
    """What the C_T test and the authenticity say of copying; empty if neither was measured."""
    test, authenticity, parts = result.metrics.get("ct"), result.metrics.get("authenticity"), []
    if test is not None:
        low, high = test.interval or [test.value] * 2
        place = NEARER if high < 0 else FARTHER if low > 0 else AS_NEAR
        parts.append(f"Copying test C_T: {_scored(test)}. The images are {place}.")
    if authenticity is not None:
        parts.append(
            f"Authenticity: {_scored(authenticity)}. This is the fraction of images that are farther from their "
            "nearest training image than that is from its own nearest one."
        )
    if parts and not (result.memorization and result.memorization.whole):
        parts.append("Of the training images, those count that the audit has, or the reference if it has none.")
    return " ".join(parts)


def _scored(entry: MetricEntry) -> str:
    spread = f" ({interval(entry.interval)})" if entry.interval else ""
    return f"{number(entry.value)}{spread}, real baseline {number(entry.floor)}"


def required(gate: GateCheck) -> str:
    """What a gate asks for: ``at least 0.6``, or relative to the real baseline."""
    side = "at least" if gate.bound.startswith("min") else "at most"
    if gate.bound in ("min", "max"):
        return f"{side} {gate.limit:g}"
    baseline = "not measured" if gate.baseline is None else number(gate.baseline)
    if gate.bound == "max_excess":
        return f"{side} {gate.limit:g} above the real baseline ({baseline})"
    return f"{side} {gate.limit:g} times the real baseline ({baseline})"


def training_words(training: Training) -> str:
    """What a classifier of the utility measurement was trained on."""
    if training.data == "both":
        return "real and generated" + ("" if training.ratio is None else f", {training.ratio:g} generated per real one")
    return f"{training.data} images only"


def utility_interval(measured: Utility) -> str:
    """What the intervals of a table of utility cover."""
    if measured.classifier == "probe":
        return "95% intervals over draws of the training images"
    return f"means and 95% intervals over {measured.seeds} seeds"


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
