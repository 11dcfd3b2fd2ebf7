"""The page of a comparison: one self-contained HTML file."""

from __future__ import annotations

from typing import Any

from rarefy.audit.compare import CLASS_METRICS, LEVEL
from rarefy.audit.page.figures import metric_label
from rarefy.audit.page.plots import PlanePoint, plane_plot
from rarefy.audit.page.templates import render
from rarefy.errors import OutputError, bad
from rarefy.shards.store import Store

# A difference of this much has the full colour.
FULL_COLOUR = 0.2

Row = dict[str, Any]


def write_page(result: Row, path: str) -> None:
    """Write the page of ``compare_runs``'s result to a local path or fsspec URL. Raises OutputError where it cannot."""
    folder, slash, name = path.rpartition("/")
    if not name:
        raise OutputError(bad("page", path, "a file to write"))
    page = render(
        "compare.html.j2",
        {
            "result": result,
            "runs": result["runs"],
            "plane_svg": _plane(result["metrics"], len(result["runs"])),
            "class_metrics": [(name, metric_label(name)) for name in _class_metrics(result)],
            "classes": [_heated(row, _class_metrics(result)) for row in result["per_class"]],
            "level": LEVEL,
            "full_colour": FULL_COLOUR,
        },
    )
    Store(folder or slash or ".").write_bytes(name, page)


def _plane(metrics: list[Row], runs: int) -> str | None:
    """The recall-FID plane; None where no audit has both."""
    recall = next((row for row in metrics if row["metric"] == "recall"), None)
    fid = next((row for row in metrics if row["metric"].startswith("fid_")), None)
    if recall is None or fid is None:
        return None
    points = [
        PlanePoint(str(place + 1), *(row["values"][place] for row in (fid, recall)),
                   *(row["intervals"][place] for row in (fid, recall)))
        for place in range(runs)
        if None not in (fid["values"][place], recall["values"][place])
    ]  # fmt: skip
    real = None
    if None not in (fid["floor"], recall["floor"]):
        real = PlanePoint("real", fid["floor"], recall["floor"], fid["floor_interval"], recall["floor_interval"])
    return plane_plot(points, real)


def _class_metrics(result: Row) -> list[str]:
    """Those that any class has a value of."""
    return [name for name in CLASS_METRICS if any(row[name]["values"][0] is not None for row in result["per_class"])]


def _heated(row: Row, metrics: list[str]) -> Row:
    """The class's name and cells: the first run's value with its floor, then every other run's difference from it."""
    cells = []
    for metric in metrics:
        found = row[metric]
        cells.append({"value": found["values"][0], "floor": found["floor"], "gap": None, "first": True})
        for gap in found["differences"][1:]:
            heat = 0 if gap is None else round(55 * min(1.0, abs(gap) / FULL_COLOUR))
            cells.append({"gap": gap, "heat": heat, "more": gap is not None and gap > 0, "first": False})
    return {"name": row["class_name"], "cells": cells}
