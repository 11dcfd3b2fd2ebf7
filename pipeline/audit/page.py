"""What the page says and draws, as plain values: verdict, notes, metric tiles, histogram shapes."""

from __future__ import annotations

from typing import Any

from pipeline.audit.metrics import METRIC_KINDS, MetricKind

Row = dict[str, Any]

CLOSE, USABLE = 0.9, 0.75
TILE_ORDER = ("recall", "tail_recall", "precision", "coverage", "density", "rarity", "fid", "kid", "on_class_rate")
ON_CLASS = MetricKind("On class", "higher", False, "share that the guiding classifier sees as the class asked for")
# Shape of a histogram in SVG units; the plot leaves room for the axis below.
WIDTH, HEIGHT, BASE = 360.0, 168.0, 146.0


def verdict(metrics: dict[str, Row]) -> Row:
    """level (close, usable, far, none), headline and two sentences. The ratio is to as many real images' own value."""
    if "recall" not in metrics:
        return {
            "level": "none",
            "headline": "No real images to compare with",
            "lines": ["Give the audit a folder of real images for recall and precision with their floor."],
        }
    recall, precision, tail, rarity = (metrics[name] for name in ("recall", "precision", "tail_recall", "rarity"))
    worst = min(_ratio(recall), _ratio(precision))
    level = "close" if worst >= CLOSE else "usable" if worst >= USABLE else "far"
    headline = {
        "close": "Close to real data",
        "usable": "Usable, short of real data",
        "far": "Far from real data",
    }[level]
    lines = [
        f"The set reaches {_percent(recall['value'])} of the real test images; as many real images reach "
        f"{_percent(recall['floor'])}. On their rarest fifth it reaches {_percent(tail['value'])} "
        f"(real: {_percent(tail['floor'])}).",
        f"{_percent(precision['value'])} of its images lie within the real data "
        f"(real: {_percent(precision['floor'])}); the mean rarity of those is {rarity['value']:.1f} "
        f"(real: {rarity['floor']:.1f}).",
    ]
    return {"level": level, "headline": headline, "lines": lines}


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
    if entry and entry["generated_count"] < 5000:
        found.append(
            "With few images FID is biased upward and coverage downward: read both beside the floor of the same count, "
            "never beside published numbers."
        )
    return found


def metric_views(metrics: dict[str, Row]) -> list[Row]:
    """Tiles in reading order: entry, label, meaning, share of the floor reached (None where it makes no sense)."""
    by_kind = {_kind(name): (name, entry) for name, entry in metrics.items()}
    views = []
    for kind in TILE_ORDER:
        if kind not in by_kind:
            continue
        name, entry = by_kind[kind]
        meaning = METRIC_KINDS.get(kind, ON_CLASS)
        views.append(
            entry | {"name": name, "label": meaning.label, "meaning": meaning.meaning, "reached": _reached(entry)}
        )
    return views


def histogram_view(title: str, meaning: str, table: Row) -> Row:
    """Bars for the generated set and a step line for the reference, in SVG units; ticks on the x axis."""
    sides = [table["generated"], table["reference"] or []]
    peak = max(share for side in sides for share in side)
    step = WIDTH / len(table["generated"])
    bars = [
        {"x": round(i * step + 0.75, 2), "width": round(step - 1.5, 2), "height": round(share / peak * (BASE - 8), 2)}
        for i, share in enumerate(table["generated"])
    ]
    edges = table["edges"]
    return {
        "title": title,
        "meaning": meaning,
        "bars": [bar | {"y": round(BASE - bar["height"], 2)} for bar in bars],
        "line": _step_line(table["reference"], peak, step),
        "generated_mean": table["generated_mean"],
        "reference_mean": table["reference_mean"],
        "ticks": [
            (round(WIDTH * part / 4, 1), f"{edges[0] + (edges[-1] - edges[0]) * part / 4:.3g}") for part in range(5)
        ],
        "peak": f"{peak:.0%}",
    }


def _step_line(shares: list[float] | None, peak: float, step: float) -> str | None:
    if shares is None:
        return None
    points = [f"M0 {BASE}"]
    for i, share in enumerate(shares):
        y = round(BASE - share / peak * (BASE - 8), 2)
        points.append(f"L{i * step:.2f} {y}L{(i + 1) * step:.2f} {y}")
    return "".join([*points, f"L{WIDTH} {BASE}"])


def _kind(name: str) -> str:
    return next((kind for kind in ("fid", "kid") if name.startswith(f"{kind}_")), name)


def _reached(entry: Row) -> float | None:
    """value / floor where higher is better, floor / value where lower is; at most 1 is drawn."""
    value, floor = entry["value"], entry["floor"]
    if floor is None or value <= 0 or floor <= 0:
        return None
    return float(value / floor if entry["better"] == "higher" else floor / value)


def _ratio(entry: Row) -> float:
    return float(entry["value"] / entry["floor"]) if entry["floor"] else 0.0


def _percent(value: float) -> str:
    return f"{value:.0%}"
