"""Plots for the pages: matplotlib's SVG, adapted for inlining, in the page's own light and dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from rarefy.audit.metrics.summary import Histogram
from rarefy.audit.schema import FeatureMap

# matplotlib draws in these colours; the page replaces them by custom properties, which follow the reader's scheme.
SET, REAL, RULE, INK = "#0101f1", "#f10101", "#01f101", "#f1f101"
VARIABLES = {SET: "var(--set)", REAL: "var(--real)", RULE: "var(--rule)", INK: "var(--soft)"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "grid.color", "xtick.color", "ytick.color"), RULE),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "axes.spines.left"), False),
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.formatter.useoffset": False,
    "ytick.major.size": 0,
    "path.simplify": False,
}
# matplotlib's metadata block contains web addresses; the page must not.
NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class PlanePoint:
    """A point of the recall-FID plot with its 95% intervals, if there are any; mark: a short label."""

    mark: str
    fid: float
    recall: float
    fid_interval: Sequence[float] | None
    recall_interval: Sequence[float] | None


def histogram_plot(name: str, table: Histogram, logarithmic: bool = False) -> str:
    """A histogram: the generated set filled (it must have values), the reference as an outline on top.

    logarithmic: the fractions' axis, for distributions most of which is in one bin. Empty bins stay empty there.
    """

    def paint(axes: Axes) -> None:
        assert table.generated is not None
        if logarithmic:
            axes.set_yscale("log")
            axes.set_ylim(_decade_below(table), 1)
            axes.yaxis.set_major_locator(LogLocator(numticks=5))
            axes.yaxis.set_minor_locator(NullLocator())
        bottom = axes.get_ylim()[0] if logarithmic else 0.0
        axes.stairs(np.maximum(table.generated, bottom), table.edges, baseline=bottom, fill=True, color=SET, alpha=0.6)
        if table.reference is not None:
            outline = np.maximum(table.reference, bottom)
            axes.stairs(outline, table.edges, baseline=None, color=REAL, linewidth=2)
        if not logarithmic:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_locator(MaxNLocator(3))
        axes.yaxis.set_major_formatter(lambda fraction, _: f"{100 * fraction:.3g}%")
        axes.xaxis.set_major_locator(MaxNLocator(5))

    return _draw(name, f"Histogram of {name}, generated and real", (360, 190), paint)


def map_plot(points: FeatureMap) -> str:
    """The 2-D map: generated images drawn over real ones, with one layer per side and class (map-SIDE-CLASS)."""

    def paint(axes: Axes) -> None:
        sides = (("real", points.real, REAL, 3.4, 0.5), ("generated", points.generated, SET, 2.8, 0.75))
        for side, rows, colour, size, alpha in sides:
            for class_id, places in _by_class(rows).items():
                layer = _dots(places, colour, size, alpha)
                layer.set_gid(f"map-{side}-{class_id}")
                axes.add_patch(layer)
        axes.autoscale_view()
        axes.set_axis_off()

    return _draw("map", "Map of the features, generated over real images", (640, 460), paint)


def plane_plot(runs: Sequence[PlanePoint], real: PlanePoint | None) -> str:
    """Recall over FID: one numbered point per run with its intervals, and the real baseline as a diamond."""

    def paint(axes: Axes) -> None:
        for run in runs:
            if run.fid_interval is not None:
                axes.plot(run.fid_interval, [run.recall] * 2, color=SET, linewidth=1.5, alpha=0.6)
            if run.recall_interval is not None:
                axes.plot([run.fid] * 2, run.recall_interval, color=SET, linewidth=1.5, alpha=0.6)
            _point(axes, run, SET, "o")
        if real is not None:
            _point(axes, real, REAL, "D")
        axes.margins(0.12)
        axes.set_xlabel("FID (lower is better)")
        axes.set_ylabel("Recall (higher is better)")
        axes.grid(visible=True, axis="both")

    return _draw("plane", "Recall over FID, one point per run", (420, 300), paint)


def _decade_below(table: Histogram) -> float:
    """The largest power of ten that all bins with images are above."""
    smallest = min(share for side in (table.generated, table.reference) for share in side or () if share > 0)
    return float(10.0 ** (np.ceil(np.log10(smallest)) - 1))


def _point(axes: Axes, point: PlanePoint, colour: str, marker: str) -> None:
    axes.plot([point.fid], [point.recall], marker=marker, markersize=7, color=colour, linestyle="none")
    axes.annotate(
        point.mark, (point.fid, point.recall), (7, 5), textcoords="offset points", color=colour, fontweight="bold"
    )


def _by_class(rows: Sequence[Sequence[Any]]) -> dict[int, list[tuple[float, float]]]:
    places: dict[int, list[tuple[float, float]]] = {}
    for x, y, class_id, *_ in rows:
        places.setdefault(int(class_id), []).append((x, y))
    return places


def _dots(places: Sequence[tuple[float, float]], colour: str, size: float, alpha: float) -> PathPatch:
    """Round-capped lines of zero length in one path: a quarter of the bytes of one marker per point."""
    vertices = [place for place in places for _ in range(2)]
    codes = [Path.MOVETO, Path.LINETO] * len(places)
    return PathPatch(Path(vertices, codes), fill=False, edgecolor=colour, linewidth=size, alpha=alpha, capstyle="round")


def _draw(name: str, label: str, size: tuple[int, int], paint: Callable[[Axes], None]) -> str:
    """The SVG text of one plot; size: in CSS pixels at full width."""
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        axes = figure.add_subplot()
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        paint(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata=NO_METADATA)
    return _inline(buffer.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """Drop what only a separate file needs, shorten coordinates, insert the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version)="[^"]*"', "", svg)
    svg = re.sub(r'\sid="[\w.]+_\d+"', "", svg)
    # Only within tags: the text of a tick stays as it is.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"-?\d+\.\d{3,}", _shorter, tag[0]), svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"| ?font-family: [^;"]*;', "", svg)
    # An inline <style> would apply to the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _shorter(coordinate: re.Match[str]) -> str:
    return f"{float(coordinate[0]):.1f}".removesuffix(".0")
