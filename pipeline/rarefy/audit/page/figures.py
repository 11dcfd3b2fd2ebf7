"""What the audit's page says, as plain values: verdict, gates, notes, metric tiles and rows, heat of the classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rarefy.audit.metrics.comparison import METRIC_KINDS, MetricKind
from rarefy.audit.page.templates import EN_DASH, number

Row = dict[str, Any]

CLOSE, USABLE = 0.9, 0.75
HEADLINES = {
    "close": "Close to real data",
    "usable": "Usable, short of real data",
    "far": "Far from real data",
    "none": "No real images to compare with",
}
TILES = ("recall", "tail_recall", "precision", "coverage", "fid", "on_class_rate")
FAST_LABELS = {"fid": "FID", "recall": "recall", "confidence": "confidence", "entropy": "entropy"}
ON_CLASS = MetricKind("On class", "higher", False, "share that the guiding classifier sees as the class asked for")
# In reading order; what a metric does not say of itself in metrics.json.
KINDS = {name: (METRIC_KINDS | {"on_class_rate": ON_CLASS})[name] for name in (*TILES, *METRIC_KINDS)}


@dataclass(frozen=True)
class ClassColumn:
    """A column of the class table. beside: the real images' value; heat: how a cell's colour is found.

    short: how far the value is below the one beside it; distance: the value over half of its histogram's range.
    """

    key: str
    label: str
    beside: str | None = None
    heat: str | None = None
    hint: str = ""


CLASS_COLUMNS = (
    ClassColumn("count", "Images", "planned", "short", "small: as many as planned, where it is another number"),
    ClassColumn("acceptance_rate", "Accepted", hint="kept / drawn by the manifest's filter"),
    ClassColumn("recall", "Recall", "recall_floor", "short"),
    ClassColumn("coverage", "Coverage", "coverage_floor", "short"),
    ClassColumn("precision", "Precision"),
    ClassColumn("on_class_rate", "On class", "reference_on_class_rate", "short"),
    ClassColumn("confidence", "Confidence", "reference_confidence"),
    ClassColumn("confidence_w1", "Shift", heat="distance", hint="Wasserstein-1 distance to the real confidences"),
    ClassColumn("entropy", "Entropy", "reference_entropy", hint="nats"),
    ClassColumn("entropy_w1", "Shift", heat="distance", hint="Wasserstein-1 distance to the real entropies, nats"),
)


def verdict(result: Row) -> Row:
    """level (close, usable, far, none), headline and sentences. The ratio is to as many real images' own value."""
    metrics = result["metrics"]
    if "recall" not in metrics:
        lines = ["Give the audit a folder of real images for recall and precision with their floor."]
        return {"level": "none", "headline": HEADLINES["none"], "lines": lines}
    recall, precision, tail, rarity = (metrics[name] for name in ("recall", "precision", "tail_recall", "rarity"))
    worst = min(_ratio(recall), _ratio(precision))
    level = "close" if worst >= CLOSE else "usable" if worst >= USABLE else "far"
    lines = [
        f"The set reaches {_percent(recall['value'])} of the real test images; as many real images reach "
        f"{_percent(recall['floor'])}. {_tail_words(result['tail'])} it reaches {_percent(tail['value'])} "
        f"(real: {_percent(tail['floor'])}).",
        f"{_percent(precision['value'])} of its images lie within the real data "
        f"(real: {_percent(precision['floor'])}); the mean rarity of those is {number(rarity['value'])} "
        f"(real: {number(rarity['floor'])}).",
    ]
    return {"level": level, "headline": HEADLINES[level], "lines": lines}


def gate_views(gates: list[Row]) -> list[Row]:
    """The manifest's gates in words, failed ones first."""
    views = [
        {
            "label": metric_label(gate["metric"]),
            "scope": "" if gate["scope"] == "all" else gate["scope"],
            "wanted": f"{'at least' if gate['bound'] == 'min' else 'at most'} {gate['limit']:g}",
            "value": gate["value"],
            "passed": gate["passed"],
        }
        for gate in gates
    ]
    return sorted(views, key=lambda view: bool(view["passed"]))


def notes(result: Row) -> list[str]:
    """What a reader must know before quoting the numbers."""
    run, found = result["provenance"], []
    entry = result["metrics"].get("recall")
    if not run["sealed"]:
        found.append(f"The data set is not sealed: {run['committed']:,} of {run['planned']:,} images are committed.")
    if run["measured"] < run["committed"]:
        found.append(f"Measured on {run['measured']:,} of {run['committed']:,} images, shards at even distances.")
    if run["not_accepted"]:
        found.append(f"{run['not_accepted']:,} images did not pass the manifest's filter and were kept.")
    if entry and entry["generated_count"] != entry["floor_count"]:
        found.append(
            f"The floor has {entry['floor_count']:,} real images against {entry['generated_count']:,} generated ones."
        )
    if run["precision"] == "fast":
        found.append(_fast_words(run["fast_errors"]))
    if entry and entry["generated_count"] < 5000:
        found.append(
            "With few images FID is biased upward and coverage downward: read both beside the floor of the same count, "
            "never beside published numbers."
        )
    return found


def _fast_words(errors: Row | None) -> str:
    """What bfloat16 does to the model's images, as measured on an embedded one."""
    mode = "Sampled in fast (bfloat16 where the device multiplies it)"
    if errors is None:
        return f"{mode}, whose error against exact was not measured for this model."
    (eps_low, eps_high), (low, high) = errors["eps"], errors["gradient"]
    changes = ", ".join(
        f"{FAST_LABELS[name]} {entry['difference']:+.2g} (deviation over seeds {number(entry['std'])})"
        for name, entry in errors["metrics"].items()
    )
    return (
        f"{mode}. Against exact, at worst over all guidance terms on this model: eps off by "
        f"{eps_low:.1%} to {eps_high:.1%} of its norm, the guidance by {low:.1%} to {high:.1%}, "
        f"{errors['pixels_above_1']:.1%} of the pixels by more than one level; {changes}."
    )


def metric_views(metrics: dict[str, Row]) -> list[Row]:
    """Every metric in reading order: its entry, label, meaning, share of the floor reached, whether it is a tile."""
    order = list(KINDS)
    known = sorted(metrics, key=lambda name: order.index(_kind(name)) if _kind(name) in KINDS else len(order))
    return [metrics[name] | _view(name, metrics[name]) for name in known]


def _view(name: str, entry: Row) -> Row:
    kind = KINDS.get(_kind(name))
    return {
        "name": name,
        "label": metric_label(name),
        "meaning": kind.meaning if kind else "",
        "reached": _reached(entry),
        "sample_count": entry.get("sample_count"),
        "tile": _kind(name) in TILES,
    }


def metric_label(name: str) -> str:
    """What people call a metric of metrics.json; its own name where the page does not know it."""
    kind = KINDS.get(_kind(name))
    return kind.label if kind else name


def class_table(result: Row) -> Row:
    """columns (those with any value) and rows: the class's name and cells of value, beside and heat (percent)."""
    classes = result["per_class"]
    columns = [column for column in CLASS_COLUMNS if any(row.get(column.key) is not None for row in classes)]
    ranges = {name: table["edges"][-1] for name, table in result["histograms"].items()}
    rows = [{"name": row["class_name"], "cells": [_cell(row, column, ranges) for column in columns]} for row in classes]
    return {"columns": columns, "rows": rows}


def _cell(row: Row, column: ClassColumn, ranges: dict[str, float]) -> Row:
    value = row.get(column.key)
    beside = row.get(column.beside) if column.beside else None
    heat = 0.0
    if value is not None and column.heat == "distance":
        heat = 2 * value / ranges[column.key.removesuffix("_w1")]
    elif value is not None and column.heat == "short" and beside:
        heat = 1 - value / beside
    if column.key == "count" and beside == value:
        beside = None
    interval = row.get(f"{column.key}_interval")
    return {"value": value, "beside": beside, "interval": interval, "heat": round(55 * min(1.0, max(0.0, heat)))}


def _tail_words(tail: Row) -> str:
    if tail["rule"] == "keys":
        return f"Of the {tail['count']:,} that were listed"
    return f"Of the {tail['share']:.0%} {'rarest' if tail['rule'] == 'avgknn' else 'least confident'}"


def _kind(name: str) -> str:
    """fid and kid carry the extractor's name after theirs."""
    return next((kind for kind in ("fid", "kid") if name.startswith(f"{kind}_")), name)


def _reached(entry: Row) -> float | None:
    """value / floor where higher is better, floor / value where lower is, None where neither; at most 1 is drawn."""
    value, floor = entry["value"], entry["floor"]
    if value is None or floor is None or value <= 0 or floor <= 0 or entry["better"] == "neither":
        return None
    return float(value / floor if entry["better"] == "higher" else floor / value)


def _ratio(entry: Row) -> float:
    return float(entry["value"] / entry["floor"]) if entry["floor"] else 0.0


def _percent(value: float | None) -> str:
    return EN_DASH if value is None else f"{value:.0%}"
