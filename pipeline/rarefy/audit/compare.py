"""Several audits on equal footing: one table, differences from the first run, and whether chance explains them.

The result of ``compare_runs`` is what ``rarefy compare --json`` prints:

    format      "rarefy-compare-v1"
    runs        [{label, out, verdict, partial, preset, sampler, guidance, images, manifest_digest}]; the first is the
                one that the others are held against
    metrics     [{metric, better, floor, floor_interval, values: [...], intervals: [...], differences: [...]}], one
                place a run; a difference is null for the first run, else {difference, interval, p, significant,
                improved}
    per_class   [{class_id, class_name, METRIC: {floor, values: [...], differences: [...]}}]

Significance: the bootstrap replicates of both audits are subtracted, replicate by replicate. Their spread around their
own mean is what chance alone does to the difference (Efron and Tibshirani 1993, ch. 16): p is the share of replicates
at least as far out as the difference observed, and the interval is that spread's 95% around it. Replicates of one
number are drawn with one seed, so where they draw real images both runs are held against the same draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.footing import check_footing
from rarefy.audit.page.figures import metric_label, metric_views
from rarefy.audit.page.report import read_metrics, read_rows
from rarefy.audit.page.templates import interval, number
from rarefy.audit.schema import BOOTSTRAP_PATH
from rarefy.errors import OutputError, bad
from rarefy.shards.store import Store

FORMAT = "rarefy-compare-v1"
LEVEL = 0.05
# Of fewer replicates the outer 5% are less than one.
FEWEST_REPLICATES = 20
CLASS_METRICS = {"recall": "recall_floor", "coverage": "coverage_floor", "precision": None, "on_class_rate": None}

Row = dict[str, Any]
Replicates = dict[str, dict[int, float]]


def compare_runs(outs: Sequence[str]) -> Row:
    """Compare the audits in the output folders ``outs``; see the module for the result.

    Raises OutputError for fewer than two folders or one without an audit, ShardError for files of another format and
    for audits that are not on equal footing, naming what differs.
    """
    if len(outs) < 2:
        raise OutputError(bad("runs", " ".join(outs), "two or more output folders"))
    stores = [Store(out) for out in outs]
    results = [read_metrics(store) for store in stores]
    labels = run_labels([result["provenance"]["run"] for result in results], outs)
    check_footing(dict(zip(labels, results, strict=True)))
    replicates = [_replicates(store) for store in stores]
    return {
        "format": FORMAT,
        "runs": [_run(*each) for each in zip(labels, outs, results, strict=True)],
        "metrics": _metrics(results, replicates),
        "per_class": _per_class(results),
        "footing": _footing(results[0]),
    }


def run_labels(names: Sequence[str], outs: Sequence[str]) -> list[str]:
    """The runs' own names; the folder in brackets where two share one. Raises OutputError for a folder given twice."""
    plain = [out.rstrip("/") for out in outs]
    for out in plain:
        if plain.count(out) > 1:
            raise OutputError(bad("runs", out, "given once"))
    return [f"{name} ({out})" if names.count(name) > 1 else name for name, out in zip(names, plain, strict=True)]


def difference(first: dict[int, float], other: dict[int, float], observed: float) -> Row:
    """{difference, interval, p, significant} of other - first from replicates by number; nulls where too few."""
    shared = sorted(first.keys() & other.keys())
    if len(shared) < FEWEST_REPLICATES:
        return {"difference": observed, "interval": None, "p": None, "significant": None}
    drawn = _values(other, shared) - _values(first, shared)
    noise = drawn - drawn.mean()
    low, high = observed + np.quantile(noise, [LEVEL / 2, 1 - LEVEL / 2])
    # The observed difference is one of the draws: a p of 0 cannot be known from 200 of them.
    p = (1 + int((np.abs(noise) >= abs(observed)).sum())) / (1 + len(noise))
    return {"difference": observed, "interval": [float(low), float(high)], "p": p, "significant": p < LEVEL}


def table_text(result: Row) -> str:
    """The table for a terminal: a line a metric, a column a run, marks where chance does not explain a difference."""
    labels = [run["label"] for run in result["runs"]]
    lines = [["", "real images", *labels]]
    for row in result["metrics"]:
        cells = [_cell(row, place) for place in range(len(labels))]
        lines.append([row["metric"], number(row["floor"]), *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    partial = [f"WARNING: the audit of {run['label']} is incomplete" for run in result["runs"] if run["partial"]]
    legend = f"+ better, - worse than {labels[0]} (bootstrap, p < {LEVEL:g}); = neither"
    return "\n".join([*table, "", *partial, legend])


def _run(label: str, out: str, result: Row) -> Row:
    run = result["provenance"]
    shown = {name: run[name] for name in ("preset", "sampler", "guidance", "manifest_digest")}
    counts = {"images": run["committed"], "verdict": result["verdict"], "partial": bool(result.get("partial"))}
    return {"label": label, "out": out} | counts | shown


def _footing(result: Row) -> Row:
    run, recall = result["provenance"], result["metrics"]["recall"]
    shown = ("reference", "reference_sha256", "extractor", "extractor_layer", "extractor_sha256", "k")
    counts = {name: recall[name] for name in ("generated_count", "real_count", "floor_count")}
    return {name: run[name] for name in shown} | counts


def _metrics(results: Sequence[Row], replicates: Sequence[Replicates]) -> list[Row]:
    names = list(dict.fromkeys(name for result in results for name in result["metrics"]))
    every = {name: next(result["metrics"][name] for result in results if name in result["metrics"]) for name in names}
    return [_metric(view["name"], view, results, replicates) for view in metric_views(every)]


def _metric(name: str, entry: Row, results: Sequence[Row], replicates: Sequence[Replicates]) -> Row:
    entries = [result["metrics"].get(name, {"value": None, "interval": None}) for result in results]
    values = [each["value"] for each in entries]
    found: list[Row | None] = [None]
    for value, drawn in zip(values[1:], replicates[1:], strict=True):
        gap = _gap(values[0], value)
        row = None if gap is None else difference(replicates[0].get(name, {}), drawn.get(name, {}), gap)
        if row is not None:
            told = row["significant"] and entry["better"] != "neither"
            row |= {"improved": (row["difference"] > 0) == (entry["better"] == "higher") if told else None}
        found.append(row)
    return {
        "metric": name,
        "label": metric_label(name),
        "better": entry["better"],
        "floor": entry["floor"],
        "floor_interval": entry["floor_interval"],
        "values": values,
        "intervals": [each["interval"] for each in entries],
        "differences": found,
    }


def _per_class(results: Sequence[Row]) -> list[Row]:
    """Equal footing has made sure that all runs have the same classes, by name."""
    tables = [{row["class_name"]: row for row in result["per_class"]} for result in results]
    return [_class_row([table[name] for table in tables]) for name in tables[0]]


def _class_row(rows: Sequence[Row]) -> Row:
    found: Row = {"class_id": rows[0]["class_id"], "class_name": rows[0]["class_name"]}
    for metric, floor in CLASS_METRICS.items():
        values = [row.get(metric) for row in rows]
        gaps = [_gap(values[0], value) for value in values[1:]]
        floors = rows[0].get(floor) if floor else None
        found[metric] = {"floor": floors, "values": values, "differences": [None, *gaps]}
    return found


def _gap(first: float | None, other: float | None) -> float | None:
    return None if first is None or other is None else other - first


def _replicates(store: Store) -> Replicates:
    found: Replicates = {}
    for row in read_rows(store, BOOTSTRAP_PATH):
        if row["value"] is not None and np.isfinite(row["value"]):
            found.setdefault(row["metric"], {})[row["replicate"]] = row["value"]
    return found


def _values(drawn: dict[int, float], numbers: list[int]) -> NDArray[np.float64]:
    return np.array([drawn[each] for each in numbers], dtype=np.float64)


def _cell(row: Row, place: int) -> str:
    found = row["differences"][place]
    mark = "" if found is None or found["p"] is None else {True: " +", False: " -", None: " ="}[found["improved"]]
    bounds = row["intervals"][place]
    return number(row["values"][place]) + (f" ({interval(bounds)})" if bounds else "") + mark
