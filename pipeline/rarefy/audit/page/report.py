"""Writes the audit's page, OUT/audit/report.html, from the files in OUT/audit."""

from __future__ import annotations

from rarefy.audit.metrics.kinds import HEADLINE_METRICS, reading_order
from rarefy.audit.page.figures import class_table, notes, verdict
from rarefy.audit.page.pictures import contact_sheet, rarest_groups
from rarefy.audit.page.plots import histogram_plot, map_plot
from rarefy.audit.page.templates import render
from rarefy.audit.schema import read_result
from rarefy.audit.tables import read_copies, read_rarest
from rarefy.shards.store import Store

REPORT_PATH = "audit/report.html"
SHEET_PATH = "audit/rarest.png"
SHOWN_GATES = 16  # the rest is folded: gates per class can be a thousand
# Rarity comes first: the set is made for it.
HISTOGRAM_TITLES = {
    "rarity": ("Rarity", "radius of the smallest real neighbourhood that contains the image"),
    "confidence": ("Confidence", "probability of the requested class at t = 0"),
    "entropy": ("Entropy", "entropy of the class probabilities at t = 0, in nats"),
}
COPY_KINDS = {
    "reference": "close to real image",
    "held-out": "close to held-out real image",
    "training": "close to training image",
    "exact": "same pixels as",
    "near": "nearly the same as",
}


def write_report(store: Store) -> str:
    """Write report.html (one file that loads nothing) and rarest.png; return the page's path under OUT.

    Raises OutputError if there is no audit, ShardError if its files have another format.
    """
    result = read_result(store)
    groups = rarest_groups(read_rarest(store), result.per_class)
    drawn = {name: table for name, table in result.histograms.items() if table.generated is not None}
    page = render(
        "report.html.j2",
        {
            "result": result,
            "run": result.provenance,
            "verdict": verdict(result),
            "gates": sorted(result.gates, key=lambda gate: gate.passed),  # failed ones first
            "shown_gates": SHOWN_GATES,
            "notes": notes(result),
            "metrics": [(name, result.metrics[name]) for name in reading_order(result.metrics)],
            "headlines": HEADLINE_METRICS,
            "histograms": [
                (titles, drawn[name], histogram_plot(name, drawn[name]))
                for name, titles in HISTOGRAM_TITLES.items()
                if name in drawn
            ],
            "map_svg": map_plot(result.map) if result.map else None,
            "classes": class_table(result),
            "groups": groups,
            "copy_kinds": COPY_KINDS,
            "copy_images": {(image.key, image.other): image for image in read_copies(store)},
            "class_names": {row.class_id: row.class_name for row in result.per_class},
        },
    )
    if groups:
        store.write_bytes(SHEET_PATH, contact_sheet(groups))
    else:
        store.delete(SHEET_PATH)
    store.write_bytes(REPORT_PATH, page)
    return REPORT_PATH
