"""Writes the audit's page, OUT/audit/report.html, from the files in OUT/audit."""

from __future__ import annotations

from typing import Any

from rarefy.audit.current import read_current
from rarefy.audit.metrics.kinds import HEADLINE_METRICS, reading_order
from rarefy.audit.page.class_table import class_table, colours
from rarefy.audit.page.figures import (
    against_rows,
    against_words,
    common_setting,
    copying_words,
    memorization_words,
    notes,
    own_setting,
    required,
    training_words,
    utility_interval,
)
from rarefy.audit.page.pictures import data_uri, image_groups
from rarefy.audit.page.plots import histogram_plot, map_plot
from rarefy.audit.page.templates import render
from rarefy.audit.schema import REPORT_PATH, AuditResult
from rarefy.audit.strips import read_strips
from rarefy.audit.tables import read_copies
from rarefy.audit.verdict import LIMITS, judge, outcome
from rarefy.shards.store import Store

SHOWN_GATES = 16  # the rest is folded: gates per class can be a thousand
SHOWN_CLASSES = 20  # classes whose images are shown at once; a search finds the others
# Rarity comes first: the set is made for it. Most confidences are close to 1, so the rest needs a logarithmic scale.
HISTOGRAMS = {
    "rarity": ("Rarity", "radius of the smallest real neighbourhood around each image that has one", False),
    "confidence": ("Confidence", "probability of the requested class at t = 0; logarithmic scale", True),
    "entropy": ("Entropy", "entropy of the class probabilities at t = 0, in nats; logarithmic scale", True),
}
COPY_KINDS = {
    "training": "close to training image",
    "reference": "close to real image",
    "held-out": "close to held-out real image",
    "exact": "same pixels as",
    "near": "nearly the same as",
}


def write_report(store: Store, gallery: bool = False) -> str:
    """Write report.html, one file that loads nothing; return its path under OUT. gallery: link to gallery.html.

    Raises OutputError if there is no audit, ShardError if its files have another format or describe other shards.
    """
    result = read_current(store)
    values = _numbers(result) | _images(store, result) | {"gallery": gallery}
    filters = data_uri, outcome, required, training_words, utility_interval
    store.write_bytes(REPORT_PATH, render("report.html.j2", values, filters))
    return REPORT_PATH


def _numbers(result: AuditResult) -> dict[str, Any]:
    """What the template needs of metrics.json."""
    common = common_setting(result.metrics.values())
    drawn = {name: table for name, table in result.histograms.items() if table.generated is not None}
    own = [gate for gate in result.gates if not gate.advisory]
    classes = class_table(result)
    return {
        "result": result,
        "run": result.provenance,
        "verdict": judge(result),
        "limits": LIMITS,
        "gates": sorted(own, key=lambda gate: gate.passed),  # failed ones first
        "shown_gates": SHOWN_GATES,
        "notes": notes(result),
        "common": common,
        "draws": max((entry.floor_draws or 0 for entry in result.metrics.values() if entry.floor_spread), default=0),
        "metrics": [
            (name, result.metrics[name], own_setting(result.metrics[name], common) if common else "")
            for name in reading_order(result.metrics)
        ],
        "headlines": HEADLINE_METRICS,
        "against": against_rows(result),
        "against_words": against_words(result),
        "memorization_words": memorization_words(result),
        "copying_words": copying_words(result),
        "histograms": [
            (title, text, drawn[name], histogram_plot(name, drawn[name], logarithmic))
            for name, (title, text, logarithmic) in HISTOGRAMS.items()
            if name in drawn
        ],
        "map_svg": map_plot(result.map) if result.map else None,
        "classes": classes,
        "class_colours": colours(classes[0]),
        "class_names": {row.class_id: row.class_name for row in result.per_class},
    }


def _images(store: Store, result: AuditResult) -> dict[str, Any]:
    """What the template needs of the files with images."""
    return {
        "groups": image_groups(read_strips(store), result.per_class, result.provenance.classifier_sha256 is not None),
        "shown_classes": SHOWN_CLASSES,
        "copy_kinds": COPY_KINDS,
        "copy_images": {(image.key, image.other): image for image in read_copies(store)},
    }
