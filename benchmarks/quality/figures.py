"""The figures of docs/RESULTS.md, from what docs/results.json holds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.quality.labels import Label, place
from benchmarks.quality.spread import HEADINGS, UNCONDITIONAL, Group, Row, groups, in_order, is_number, number

STAGE = "tau x gamma"
CONDITIONAL_STYLE: dict[str, Any] = {"color": "#2b6fd6", "marker": "o"}
UNCONDITIONAL_STYLE: dict[str, Any] = {"color": "#a9670a", "marker": "s"}
FLOOR_COLOR = "#1b7f4b"
CURVES = {"plain": "#2b6fd6", "ect": "#a9670a", "adm-g": "#2b6fd6", "eds": "#1b7f4b", "eds-ect": "#a9670a"}
NAMES = {
    "plain": "plain classifier", "ect": "ECT classifier", "adm-g": "ADM-G", "eds": "ADM-G + EDS",
    "eds-ect": "ADM-G + EDS, ECT classifier",
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "rarefy",  # the same numbers give the same file
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}


def write_figures(results: Mapping[str, Any], folder: Path) -> list[str]:
    """Write each figure that results have the numbers of; returns the names of the files."""
    made = {"results-plane.svg": plane, "results-sweep.svg": heat_maps}
    if results.get("traces"):
        made |= {"results-entropy.svg": entropies, "results-gradient.svg": gradients}
    written = []
    with rc_context(STYLE):
        for name, draw in made.items():
            figure = draw(results)
            if figure is not None:
                figure.savefig(folder / name, metadata={"Date": None})
                written.append(name)
    return written


def plane(results: Mapping[str, Any]) -> Figure | None:
    """Recall against FID, a point a method with its deviation over seeds; None where no method has both.

    FID grows downwards, so that better is up and to the right, where the real images are.
    """
    found = [group for group in groups(results).values() if {"fid", "recall"} <= group.values.keys()]
    if not found:
        return None
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes = figure.subplots()
    labels = []
    for unconditional, name in ((False, "class-conditional ADM"), (True, "unconditional ADM")):
        style = UNCONDITIONAL_STYLE if unconditional else CONDITIONAL_STYLE
        own = [_label(group, style["color"]) for group in found if group.unconditional is unconditional]
        if own:
            axes.errorbar(
                [p.x for p in own], [p.y for p in own], [p.y_error for p in own], [p.x_error for p in own],
                linestyle="none", elinewidth=1, capsize=2, markersize=6, label=name, **style,
            )  # fmt: skip
        labels += own
    axes.set_yscale("log")
    axes.margins(0.08, 0.14)
    ticks = MaxNLocator(6).tick_values(*sorted(axes.get_ylim()))[1:-1]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.invert_yaxis()
    axes.set_xlabel("recall  (better →)")
    axes.set_ylabel("FID, log scale  (better ↑)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    if floor := results.get("floor"):
        labels.append(_real_images(axes, floor))
    place(axes, labels)
    return figure


def _real_images(axes: Axes, floor: Row) -> Label:
    """A star where the real images lie, or an arrow toward them from the edge of the plot."""
    to_axes = axes.transData + axes.transAxes.inverted()
    where = to_axes.transform((floor["recall"], floor["fid"]))
    shown = where.clip(0.03, 0.97)
    if (shown == where).all():
        axes.plot(floor["recall"], floor["fid"], "*", markersize=12, color=FLOOR_COLOR)
    else:
        arrow = {"arrowstyle": "->", "color": FLOOR_COLOR, "linewidth": 1.5}
        start = shown - 0.06 * np.sign(where - shown)
        axes.annotate("", tuple(shown), tuple(start), xycoords="axes fraction", arrowprops=arrow)
        shown = (shown + start) / 2
    x, y = to_axes.inverted().transform(shown)
    text = f"real images: recall {number(floor['recall'])}, FID {number(floor['fid'])}"
    return Label(text, x, y, 0, 0, FLOOR_COLOR)


def _label(group: Group, color: str) -> Label:
    recall, fid = group.values["recall"], group.values["fid"]
    name = group.method.removeprefix(UNCONDITIONAL)
    return Label(name, recall.mean, fid.mean, recall.std or 0.0, fid.std or 0.0, color)


def heat_maps(results: Mapping[str, Any]) -> Figure | None:
    """Recall and FID over tau and gamma, a line of panels a combination of the sweep's other values; or None."""
    tables = _tables([row for row in results["sweep"] if row["stage"] == STAGE])
    if not tables:
        return None
    figure = Figure(figsize=(9, 3.4 * len(tables)), layout="constrained")
    for line, (other, rows) in zip(figure.subplots(len(tables), 2, squeeze=False), tables.items(), strict=True):
        for axes, name, colors in zip(line, ("recall", "fid"), ("viridis", "viridis_r"), strict=True):
            _heat_map(axes, rows, name, colors)
            axes.set_title(f"{HEADINGS[name]}{f', {other}' if other else ''}", fontsize=10)
    return figure


def _tables(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that have both tau and gamma, by their model and other values."""
    found: dict[str, list[Row]] = {}
    complete = [row for row in rows if {"tau", "gamma"} <= row["values"].keys()]
    presets = {row["preset"] for row in complete}
    for row in complete:
        others = {key: value for key, value in row["values"].items() if key not in ("tau", "gamma")}
        model = [row["preset"]] if len(presets) > 1 else []
        found.setdefault(", ".join([*model, *(f"{key} {value}" for key, value in others.items())]), []).append(row)
    return found


def _heat_map(axes: Axes, rows: Sequence[Row], name: str, colors: str) -> None:
    """A cell a (tau, gamma), the mean over seeds; white where there is no row."""
    taus, gammas = (sorted({json.dumps(row["values"][key]) for row in rows}, key=_value) for key in ("tau", "gamma"))
    values = np.full((len(gammas), len(taus)), np.nan)
    for i, j in np.ndindex(values.shape):
        own = [
            row[name]
            for row in rows
            if [json.dumps(row["values"][k]) for k in ("gamma", "tau")] == [gammas[i], taus[j]]
        ]
        values[i, j] = statistics.fmean(own) if own and all(map(is_number, own)) else np.nan
    image = axes.imshow(values, cmap=colors, aspect="auto", origin="lower")
    middle = (np.nanmin(values) + np.nanmax(values)) / 2 if np.isfinite(values).any() else 0.0
    for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
        bright = bool(values[i, j] > middle) == (colors == "viridis")
        axes.text(j, i, number(float(values[i, j])), ha="center", va="center", fontsize=9,
                  color="black" if bright else "white")  # fmt: skip
    axes.set_xticks(range(len(taus)), [text.strip('"') for text in taus])
    axes.set_yticks(range(len(gammas)), [text.strip('"') for text in gammas])
    axes.grid(visible=False)
    axes.set_xlabel("tau")
    axes.set_ylabel("gamma at low noise, its negative at high")
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes)


def _value(text: str) -> tuple[bool, float, str]:
    return in_order(json.loads(text))


def entropies(results: Mapping[str, Any]) -> Figure:
    """Mean entropy of p(. | x_t) along t with each classifier: at noised real images, then in each pair's chain."""
    traces = results["traces"]
    titled = {"noised real images": traces["noised"]}
    titled |= {f"ADM-G's chain, {name} ADM": chain for name, chain in traces["chains"].items()}
    return _panels(titled, "entropy", "entropy of p(y|x_t), nats")


def gradients(results: Mapping[str, Any]) -> Figure:
    """Mean norm of an image's guidance along t, with and without EDS, a panel a pair of models."""
    titled = {f"{name} ADM": chain for name, chain in results["traces"]["chains"].items()}
    return _panels(titled, "gradient", "norm of the guidance G(x_t)")


def _panels(titled: Mapping[str, Row], key: str, y: str) -> Figure:
    figure = Figure(figsize=(max(3.1 * len(titled), 8), 3.4), layout="constrained")
    panels = figure.subplots(1, len(titled), squeeze=False, sharey=key == "entropy")[0]
    for axes, (title, found) in zip(panels, titled.items(), strict=True):
        for name, curve in found[key].items():
            axes.plot(found["t"], curve["mean"], color=CURVES[name], label=NAMES[name])
            axes.fill_between(found["t"], curve["low"], curve["high"], color=CURVES[name], alpha=0.12, linewidth=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("t (sampling goes to the right)")
        axes.invert_xaxis()
    for axes in panels:  # all curves are there: a limit set ends the scaling of every panel that shares it
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel(y)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure
