"""The audit's page for people: OUT/audit/report.html, from the files in OUT/audit."""

from __future__ import annotations

from dataclasses import dataclass

from rarefy.audit.metrics.summary import Histogram
from rarefy.audit.page.figures import class_table, gate_views, metric_views, notes, verdict
from rarefy.audit.page.pictures import contact_sheet, copy_views, rarest_groups
from rarefy.audit.page.plots import histogram_plot, map_plot
from rarefy.audit.page.templates import render
from rarefy.audit.schema import read_result
from rarefy.audit.tables import read_copies, read_rarest
from rarefy.shards.store import Store

REPORT_PATH = "audit/report.html"
SHEET_PATH = "audit/rarest.png"
SHOWN_GATES = 16  # the others are folded away: a gate per class may be a thousand gates
# Rarity first: it is what the set is for.
HISTOGRAM_TITLES = {
    "rarity": ("Rarity", "radius of the smallest real neighbourhood that contains the image"),
    "confidence": ("Confidence", "probability of the requested class at t = 0"),
    "entropy": ("Entropy", "entropy of the class probabilities at t = 0, in nats"),
}


@dataclass(frozen=True)
class HistogramView:
    """A histogram with its title and plot."""

    title: str
    meaning: str
    svg: str
    table: Histogram


def write_report(store: Store) -> str:
    """Write report.html (one file that loads nothing) and rarest.png; return the page's path under OUT.

    Raises OutputError if there is no audit, ShardError if its files have another format.
    """
    result = read_result(store)
    groups = rarest_groups(read_rarest(store), result.per_class)
    page = render(
        "report.html.j2",
        {
            "result": result,
            "run": result.provenance,
            "verdict": verdict(result),
            "gates": gate_views(result.gates),
            "shown_gates": SHOWN_GATES,
            "notes": notes(result),
            "metrics": metric_views(result.metrics),
            "histograms": [
                HistogramView(
                    *HISTOGRAM_TITLES[name], histogram_plot(name, result.histograms[name]), result.histograms[name]
                )
                for name in HISTOGRAM_TITLES
                if name in result.histograms and result.histograms[name].generated is not None
            ],
            "map_svg": map_plot(result.map) if result.map else None,
            "classes": class_table(result),
            "groups": groups,
            "copies": copy_views(result.copies, read_copies(store), result.per_class),
        },
    )
    if groups:
        store.write_bytes(SHEET_PATH, contact_sheet(groups))
    store.write_bytes(REPORT_PATH, page)
    return REPORT_PATH
