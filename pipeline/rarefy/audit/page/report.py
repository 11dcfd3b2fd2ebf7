"""The page that a person looks at: OUT/audit/report.html, from what the audit left in OUT/audit."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rarefy.audit.page.figures import class_table, gate_views, metric_views, notes, verdict
from rarefy.audit.page.pictures import contact_sheet, copy_views, rarest_groups
from rarefy.audit.page.plots import histogram_plot, map_plot
from rarefy.audit.page.templates import render
from rarefy.audit.schema import COPIES_PATH, FORMAT, METRICS_PATH, RAREST_PATH
from rarefy.errors import ShardError
from rarefy.shards.store import Store

REPORT_PATH = "audit/report.html"
SHEET_PATH = "audit/rarest.png"
SHOWN_GATES = 16  # the others are folded away: a gate a class may be a thousand
HISTOGRAM_TITLES = {
    "rarity": ("Rarity", "radius of the tightest real neighbourhood that holds the image"),
    "confidence": ("Confidence", "probability of the class asked for, at t = 0"),
    "entropy": ("Entropy", "of the class probabilities at t = 0, in nats"),
}

Row = dict[str, Any]


def write_report(store: Store) -> str:
    """Write report.html (one file, no network) and rarest.png; returns the page's path under OUT.

    Raises OutputError where there is no audit, ShardError where its files are of another format.
    """
    result = read_metrics(store)
    groups = rarest_groups(_rows_if_any(store, RAREST_PATH), result["per_class"])
    copies = copy_views(result["copies"], _rows_if_any(store, COPIES_PATH), result["per_class"])
    page = render(
        "report.html.j2",
        {
            "result": result,
            "run": result["provenance"],
            "verdict": verdict(result),
            "gates": gate_views(result["gates"]),
            "shown_gates": SHOWN_GATES,
            "notes": notes(result),
            "metrics": metric_views(result["metrics"]),
            "histograms": _histograms(result["histograms"]),
            "map_svg": map_plot(result["map"]) if result["map"] else None,
            "classes": class_table(result),
            "groups": groups,
            "copies": copies,
        },
    )
    if groups:
        store.write_bytes(SHEET_PATH, contact_sheet(groups))
    store.write_bytes(REPORT_PATH, page)
    return REPORT_PATH


def read_metrics(store: Store) -> Row:
    """OUT/audit/metrics.json. Raises OutputError where there is none, ShardError where it is of another format."""
    data = store.read_bytes(METRICS_PATH)
    try:
        result: Row = json.loads(data)
    except ValueError as cause:
        raise ShardError(f"{METRICS_PATH}: not JSON ({cause}); run audit again") from cause
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ShardError(f"{METRICS_PATH}: not of the format {FORMAT}; run audit again")
    return result


def read_rows(store: Store, rel: str) -> list[Row]:
    """A Parquet file of the audit as rows. Raises OutputError or ShardError where it cannot be read."""
    try:
        with store.local_copy(rel) as path:
            rows: list[Row] = pq.read_table(path, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError) as cause:
        raise ShardError(f"{rel}: not a readable Parquet file; run audit again") from cause
    return rows


def _rows_if_any(store: Store, rel: str) -> list[Row]:
    return read_rows(store, rel) if store.exists(rel) else []


def _histograms(tables: dict[str, Row]) -> list[Row]:
    """Rarity first: it is what the set is for."""
    return [
        {"title": title, "meaning": meaning, "svg": histogram_plot(name, tables[name]), "table": tables[name]}
        for name, (title, meaning) in HISTOGRAM_TITLES.items()
        if name in tables and tables[name]["generated"] is not None
    ]
