"""The page's table of classes as plain values: columns, cells, and the strength of their colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rarefy.audit.schema import AuditResult, ClassRow

FULL_HEAT = 55  # percent of the colour
# What a deeper colour means where it is not how far the value is below the baseline.
HEAT_WORDS = {
    "distance": "the further its distribution is from that of the real images",
    "share": "the more there are",
}


@dataclass(frozen=True)
class ClassColumn:
    """A column of the class table. baseline: the column of the real images; heat: how a cell's colour is computed.

    short: how far the value is below its baseline, as a fraction of it; distance: the value over half of its
    histogram's range; share: the value itself.
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
    ClassColumn("tail_recall", "Tail recall", "tail_recall_floor", "short", "recall of the class's rarest real images"),
    ClassColumn("coverage", "Coverage", "coverage_floor", "short"),
    ClassColumn("precision", "Precision", "precision_floor", "short", "fraction of images within the real data"),
    ClassColumn("rarity", "Rarity", "rarity_floor", hint="mean rarity of the images within the real data"),
    ClassColumn("on_class_rate", "On class", "reference_on_class_rate", "short"),
    ClassColumn("copies", "Copies", heat="share", hint="fraction of images that look copied"),
    ClassColumn("vendi", "Vendi score", "vendi_floor", "short", "effective number of different images"),
    ClassColumn("utility_real", "Accuracy", hint="the probe's accuracy on this class with the real images alone"),
    ClassColumn("utility", "Utility", hint="accuracy gained on this class by adding the set to the real images"),
    ClassColumn("confidence", "Confidence", "reference_confidence"),
    ClassColumn("confidence_w1", "Shift", heat="distance", hint="Wasserstein-1 distance to the real confidences"),
    ClassColumn("entropy", "Entropy", "reference_entropy", hint="nats"),
    ClassColumn("entropy_w1", "Shift", heat="distance", hint="Wasserstein-1 distance to the real entropies, nats"),
)


def class_table(result: AuditResult) -> tuple[list[ClassColumn], list[tuple[str, list[ClassCell]]]]:
    """The columns with any value, and each class's name with its cells."""
    classes = result.per_class
    columns = [column for column in CLASS_COLUMNS if any(getattr(row, column.key) is not None for row in classes)]
    ranges = {name: table.edges[-1] for name, table in result.histograms.items()}
    return columns, [(row.class_name, [_cell(row, column, ranges) for column in columns]) for row in classes]


def colours(columns: Sequence[ClassColumn]) -> list[tuple[str, str]]:
    """Label and meaning of the colour, for the columns where it is not the distance below the baseline."""
    return list(dict.fromkeys((each.label, HEAT_WORDS[each.heat]) for each in columns if each.heat in HEAT_WORDS))


def heat_percent(strength: float) -> int:
    """Percent of the colour for a strength from 0 to 1; values beyond are clipped."""
    return round(FULL_HEAT * min(1.0, max(0.0, strength)))


def _cell(row: ClassRow, column: ClassColumn, ranges: dict[str, float]) -> ClassCell:
    value = getattr(row, column.key)
    baseline = getattr(row, column.baseline) if column.baseline else None
    strength = 0.0
    if value is not None and column.heat == "distance":
        strength = 2 * value / ranges[column.key.removesuffix("_w1")]
    elif value is not None and column.heat == "share":
        strength = value
    elif value is not None and column.heat == "short" and baseline:
        strength = 1 - value / baseline
    if column.key == "count" and baseline == value:
        baseline = None
    return ClassCell(value, baseline, getattr(row, f"{column.key}_interval", None), heat_percent(strength))
