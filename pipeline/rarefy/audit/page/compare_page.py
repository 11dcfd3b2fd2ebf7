"""Shows a comparison as one self-contained HTML page, and as a table in the terminal."""

from __future__ import annotations

from dataclasses import dataclass

from rarefy.audit.compare import (
    CLASS_METRICS,
    LEVEL,
    SIGNIFICANCE,
    ClassValues,
    ComparedMetric,
    CompareResult,
)
from rarefy.audit.metrics.kinds import metric_label
from rarefy.audit.page.plots import Panel, panel_plot
from rarefy.audit.page.templates import interval, number, render, save_page
from rarefy.gates import metric_kind

PANELS = ("fid", "precision", "recall", "tail_recall")  # those of the figure in docs/RESULTS.md


@dataclass(frozen=True)
class CompareCell:
    """A run's value for one class, and its difference from the first run's.

    improved: None unless the difference is significant and one direction is better.
    """

    value: float | None
    difference: float | None
    improved: bool | None


@dataclass(frozen=True)
class ClassTable:
    """One metric of all classes: per class its name, its real baseline and one cell per run."""

    label: str
    rows: list[tuple[str, float | None, list[CompareCell]]]


def write_page(result: CompareResult, path: str) -> None:
    """Write the page to a local path or fsspec URL. Raises OutputError if it cannot be written."""
    shown = [metric for metric in CLASS_METRICS if _has_values(result, metric)]
    page = render(
        "compare.html.j2",
        {
            "result": result,
            "runs": result.runs,
            "footing": result.footing,
            "panels": [(panel, panel_plot(panel)) for panel in _panels(result.metrics)],
            "classes": [_class_table(result, metric) for metric in shown],
            "significance": SIGNIFICANCE,
        },
    )
    save_page("page", path, page)


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
    legend = f"+ better, - worse than {labels[0]} (p < {LEVEL:g}); = neither"
    return "\n".join([*table, "", *partial, legend, SIGNIFICANCE])


def _cell_text(row: ComparedMetric, place: int) -> str:
    difference, bounds = row.differences[place], row.intervals[place]
    mark = ""
    if difference is not None and difference.p is not None:
        mark = {True: " +", False: " -", None: " ="}[difference.improved]
    return number(row.values[place]) + (f" ({interval(bounds)})" if bounds else "") + mark


def _panels(metrics: list[ComparedMetric]) -> list[Panel]:
    """The metrics of the figure in docs/RESULTS.md that the audits have."""
    rows = {metric_kind(row.metric): row for row in metrics}
    return [
        Panel(row.metric, row.label, row.better, row.values, row.intervals, row.floor)
        for kind in PANELS
        if (row := rows.get(kind)) is not None
    ]


def _has_values(result: CompareResult, metric: str) -> bool:
    return any(getattr(row, metric).values[0] is not None for row in result.per_class)


def _class_table(result: CompareResult, metric: str) -> ClassTable:
    rows = [(row.class_name, getattr(row, metric)) for row in result.per_class]
    return ClassTable(metric_label(metric), [(name, values.floor, _cells(values)) for name, values in rows])


def _cells(compared: ClassValues) -> list[CompareCell]:
    each = zip(compared.values, compared.differences, compared.improved, strict=True)
    return [CompareCell(*cell) for cell in each]
