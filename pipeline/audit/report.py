"""The page that a person looks at: OUT/audit/report.html, from what the audit left in OUT/audit."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from pipeline.audit.audit import FORMAT, METRICS_PATH
from pipeline.audit.page import histogram_view, metric_views, notes, verdict
from pipeline.audit.tables import RAREST_PATH, SHOWN_A_CLASS
from pipeline.errors import ShardError
from pipeline.shards.store import Store

REPORT_PATH = "audit/report.html"
SHEET_PATH = "audit/rarest.png"
THUMBNAIL = 128
SHEET_CELL = 56
SHEET_GAP = 28
HISTOGRAM_TITLES = {
    "confidence": ("Confidence", "probability of the class asked for, at t = 0"),
    "entropy": ("Entropy", "of the class probabilities at t = 0, in nats"),
    "rarity": ("Rarity", "radius of the tightest real neighbourhood that holds the image"),
}

Row = dict[str, Any]


def write_report(store: Store) -> str:
    """Write report.html (one file, no network) and rarest.png; returns the page's path under OUT.

    Raises OutputError where there is no audit, ShardError where its files are of another format.
    """
    result = _read_metrics(store)
    groups = _rarest_groups(_read_rarest(store), result["per_class"])
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["number"] = number
    page = environment.get_template("report.html.j2").render(
        run=result["provenance"],
        verdict=verdict(result["metrics"]),
        notes=notes(result),
        metrics=metric_views(result["metrics"]),
        histograms=[
            histogram_view(*HISTOGRAM_TITLES[name], table)
            for name, table in result["histograms"].items()
            if table["generated"] is not None
        ],
        classes=result["per_class"],
        groups=groups,
        shown=SHOWN_A_CLASS,
    )
    if groups:
        store.write_bytes(SHEET_PATH, contact_sheet(groups))
    store.write_bytes(REPORT_PATH, page.encode())
    return REPORT_PATH


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: thousands separated, three significant places below ten, a dash for none."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, int):
        return f"{value:,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def contact_sheet(groups: list[Row]) -> bytes:
    """PNG: one line a class, its rarest generated images on the left, the rarest real ones on the right."""
    width = 2 * SHOWN_A_CLASS * SHEET_CELL + SHEET_GAP
    sheet = Image.new("RGB", (width, len(groups) * SHEET_CELL), "white")
    for line, group in enumerate(groups):
        for side, left in (("generated", 0), ("real", SHOWN_A_CLASS * SHEET_CELL + SHEET_GAP)):
            for place, cell in enumerate(group[side]):
                with Image.open(io.BytesIO(cell["png"])) as image:
                    tile = image.convert("RGB").resize((SHEET_CELL, SHEET_CELL), _resampling(image.width))
                sheet.paste(tile, (left + place * SHEET_CELL, line * SHEET_CELL))
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _resampling(side: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if side <= SHEET_CELL else Image.Resampling.BOX


def _read_metrics(store: Store) -> Row:
    data = store.read_bytes(METRICS_PATH)
    try:
        result: Row = json.loads(data)
    except ValueError as cause:
        raise ShardError(f"{METRICS_PATH}: not JSON ({cause}); run audit again") from cause
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ShardError(f"{METRICS_PATH}: not of the format {FORMAT}; run audit again")
    return result


def _read_rarest(store: Store) -> list[Row]:
    if not store.exists(RAREST_PATH):
        return []
    try:
        with store.local_copy(RAREST_PATH) as path:
            rows: list[Row] = pq.read_table(path, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError) as cause:
        raise ShardError(f"{RAREST_PATH}: not a readable Parquet file; run audit again") from cause
    return rows


def _rarest_groups(rows: list[Row], classes: list[Row]) -> list[Row]:
    """One entry a class: its name and both sides' images, rarest first, as data URIs."""
    names = {row["class_id"]: row["class_name"] for row in classes}
    groups: dict[int, Row] = {}
    for row in sorted(rows, key=lambda row: (row["class_id"], row["rank"])):
        class_id = row["class_id"]
        group = groups.setdefault(class_id, {"name": names[class_id], "generated": [], "real": []})
        seen = row["predicted_id"]
        cell = row | {"uri": _data_uri(row["png"]), "off_class": seen is not None and seen != class_id}
        group[row["side"]].append(cell)
    return list(groups.values())


def _data_uri(png: bytes) -> str:
    """The image inline; large ones as thumbnails, or a page of 512 px images would weigh as much as its shards."""
    with Image.open(io.BytesIO(png)) as image:
        if image.width > THUMBNAIL:
            buffer = io.BytesIO()
            image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).save(buffer, format="PNG")
            png = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(png).decode()
