"""Shows a comparison as one self-contained HTML page, and as a table in the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rarefy.audit.compare import CLASS_METRICS, LEVEL, ComparedClass, ComparedMetric, CompareResult
from rarefy.audit.metrics.kinds import metric_label
from rarefy.audit.page.class_table import heat_percent
from rarefy.audit.page.plots import PlanePoint, plane_plot
from rarefy.audit.page.templates import interval, number, render
from rarefy.errors import OutputError, bad
from rarefy.shards.store import Store

FULL_COLOUR = 0.2  # the difference from which a cell has the full colour


@dataclass(frozen=True)
class CompareCell:
    """The first run's value with its baseline (first), or another run's difference from it."""

    first: bool
    value: float | None
    floor: float | None = None
    heat: int = 0


def write_page(result: CompareResult, path: str) -> None:
    """Write the page to a local path or fsspec URL. Raises OutputError if it cannot be written."""
    folder, slash, name = path.rpartition("/")
    if not name:
        raise OutputError(bad("page", path, "the path of a file"))
    shown = [metric for metric in CLASS_METRICS if _has_values(result, metric)]
    page = render(
        "compare.html.j2",
        {
            "result": result,
            "runs": result.runs,
            "footing": result.footing,
            "plane_svg": _plane(result.metrics, len(result.runs)),
            "class_metrics": [metric_label(metric) for metric in shown],
            "classes": [(row.class_name, _cells(row, shown)) for row in result.per_class],
            "level": LEVEL,
            "full_colour": FULL_COLOUR,
        },
    )
    Store(folder or slash or ".").write_bytes(name, page)


def table_text(result: CompareResult) -> str:
    """The table for a terminal: one line per metric, one column per run, with marks for significant differences."""
    labels = [run.label for run in result.runs]
    lines = [["", "real images", *labels]]
    lines += [
        [row.metric, number(row.floor), *(_cell_text(row, place) for place in range(len(labels)))]
        for row in result.metrics
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    partial = [f"WARNING: the audit of {run.label} is incomplete" for run in result.runs if run.partial]
    legend = f"+ better, - worse than {labels[0]} (bootstrap, p < {LEVEL:g}); = neither"
    return "\n".join([*table, "", *partial, legend])


def _cell_text(row: ComparedMetric, place: int) -> str:
    difference, bounds = row.differences[place], row.intervals[place]
    mark = ""
    if difference is not None and difference.p is not None:
        mark = {True: " +", False: " -", None: " ="}[difference.improved]
    return number(row.values[place]) + (f" ({interval(bounds)})" if bounds else "") + mark


def _plane(metrics: list[ComparedMetric], runs: int) -> str | None:
    """The plot of recall over FID; None if the audits do not have both."""
    recall = next((row for row in metrics if row.metric == "recall"), None)
    fid = next((row for row in metrics if row.metric.startswith("fid_")), None)
    if recall is None or fid is None:
        return None
    points = []
    for place in range(runs):
        x, y = fid.values[place], recall.values[place]
        if x is not None and y is not None:
            points.append(PlanePoint(str(place + 1), x, y, fid.intervals[place], recall.intervals[place]))
    real = None
    if fid.floor is not None and recall.floor is not None:
        real = PlanePoint("real", fid.floor, recall.floor, fid.floor_interval, recall.floor_interval)
    return plane_plot(points, real)


def _has_values(result: CompareResult, metric: str) -> bool:
    return any(getattr(row, metric).values[0] is not None for row in result.per_class)


def _cells(row: ComparedClass, metrics: list[str]) -> list[CompareCell]:
    """For each metric: the first run's value with its baseline, then the other runs' differences."""
    cells = []
    for metric in metrics:
        compared = getattr(row, metric)
        cells.append(CompareCell(True, compared.values[0], compared.floor))
        for gap in compared.differences[1:]:
            cells.append(CompareCell(False, gap, heat=heat_percent(abs(gap or 0.0) / FULL_COLOUR)))
    return cells
