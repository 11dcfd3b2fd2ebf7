"""The figures of docs/RESULTS.md, drawn from docs/results.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from benchmarks.quality.methods import METHODS, UNCONDITIONAL
from benchmarks.quality.results import HEADINGS, summary

BLUE, BROWN, GREEN = "#2b6fd6", "#a9670a", "#1b7f4b"
PANELS = ("fid", "precision", "recall", "tail_recall")
CURVES = {
    "plain": (BLUE, "plain classifier"), "ect": (BROWN, "ECT classifier"), "adm-g": (BLUE, "ADM-G"),
    "eds": (GREEN, "ADM-G + EDS"), "eds-ect": (BROWN, "ADM-G + EDS, ECT classifier"),
}  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "rarefy",  # the same numbers give the same file
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}


def write_figures(results: Mapping[str, Any], folder: Path) -> None:
    """Write each figure that the results have the numbers for."""
    with rc_context(STYLE):
        figures = {"results-samplers.svg": samplers(results)}
        if "traces" in results:
            figures["results-traces.svg"] = traces(results["traces"])
        for name, figure in figures.items():
            figure.savefig(folder / name, metadata={"Date": None})


def samplers(results: Mapping[str, Any]) -> Figure:
    """One panel per metric and one line per sampler: mean and standard deviation over seeds, and the real images."""
    methods = summary(results)
    figure = Figure(figsize=(10, 1 + 0.28 * len(methods)), layout="constrained")
    colors = [BROWN if METHODS[method][0].startswith(UNCONDITIONAL) else BLUE for method in methods]
    places = range(len(methods))
    for axes, name in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True):
        means, stds = zip(*((values[name].mean, values[name].std or 0.0) for values in methods.values()), strict=True)
        axes.errorbar(means, places, xerr=stds, fmt="none", ecolor=colors)
        axes.scatter(means, places, c=colors, s=25, zorder=3)
        if "floor" in results:
            axes.axvline(results["floor"][name], color=GREEN, linestyle="--", label="real images")
        axes.set_title(f"{HEADINGS[name]} ({'lower' if name == 'fid' else 'higher'} is better)", fontsize=10)
        axes.set_yticks(places, list(methods))
        axes.grid()
    figure.axes[0].invert_yaxis()
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", frameon=False)
    return figure


def traces(chains: Mapping[str, Any]) -> Figure:
    """Entropy of p(y|x_t) and norm of the guidance along t, means over images."""
    names = {"entropy": "entropy of p(y|x_t), nats", "gradient": "norm of the guidance"}
    figure = Figure(figsize=(10, 6), layout="constrained")
    for row, (key, label) in zip(figure.subplots(2, len(chains["chains"]), squeeze=False), names.items(), strict=True):
        for axes, (model, chain) in zip(row, chains["chains"].items(), strict=True):
            for name, curve in chain[key].items():
                color, text = CURVES[name]
                axes.plot(chain["t"], curve["mean"], color=color, label=text)
            axes.set(title=f"{model} model", xlabel="t (sampling goes to the right)", ylabel=label)
            axes.set_ylim(bottom=0)
            axes.invert_xaxis()
            axes.legend(frameon=False)
    return figure
