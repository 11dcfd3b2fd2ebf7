"""Labels beside the points of a plot, placed so that none covers another, a point or an error bar."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import Bbox

DISTANCES = (9.0, 16.0, 26.0, 38.0, 52.0, 70.0, 90.0, 112.0)  # of a label's near edge from its point, points
ANGLES = tuple(math.radians(angle) for angle in (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240))
NEAR = 12.0  # beyond this a line leads to the point


@dataclass(frozen=True)
class Label:
    """Text for the point (x, y), in data units. x_error, y_error: half lengths of its error bars."""

    text: str
    x: float
    y: float
    x_error: float
    y_error: float
    color: str


def place(axes: Axes, labels: Sequence[Label], marker: float = 5.0) -> None:
    """Write each label at the nearest free place around its point; the axes' limits must be final.

    marker: radius kept free around each point, in points.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]  # the layout, which the pixels depend on, is made here
    pixel = figure.dpi / 72
    taken = [box for label in labels for box in _occupied(axes, label, marker * pixel)]
    for label in labels:
        text = axes.annotate(label.text, (label.x, label.y), (0, 0), textcoords="offset points", fontsize=9,
                             color=label.color, ha="left", va="bottom")  # fmt: skip
        extent = text.get_window_extent()
        width, height = extent.width / pixel, extent.height / pixel
        point = axes.transData.transform((label.x, label.y))
        boxes = {
            place: _box(point[0] + pixel * place[0], point[1] + pixel * place[1], extent.width, extent.height)
            for place in _places(width, height)
        }
        inside = {place: box for place, box in boxes.items() if _within(box, axes.bbox)} or boxes
        best = min(inside, key=lambda place: sum(_overlap(inside[place], other) for other in taken))
        text.set_position(best)
        taken.append(boxes[best])
        if _gap(best, width, height) > NEAR:
            end = (best[0] + min(max(-best[0], 0.0), width), best[1] + min(max(-best[1], 0.0), height))
            axes.annotate("", (label.x, label.y), end, textcoords="offset points", zorder=1,
                          arrowprops={"arrowstyle": "-", "color": label.color, "linewidth": 0.6, "alpha": 0.6,
                                      "shrinkB": marker})  # fmt: skip


def _places(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Offsets of a label's lower left corner from its point, nearest first."""
    for distance, angle in itertools.product(DISTANCES, ANGLES):
        x, y = distance * math.cos(angle), distance * math.sin(angle)
        yield x - width * (0.5 - 0.5 * math.cos(angle)), y - height * (0.5 - 0.5 * math.sin(angle))


def _box(x: float, y: float, width: float, height: float) -> Bbox:
    return Bbox([[x, y], [x + width, y + height]])


def _gap(place: tuple[float, float], width: float, height: float) -> float:
    """Distance of a label's box from its point."""
    return math.hypot(max(place[0], 0.0, -place[0] - width), max(place[1], 0.0, -place[1] - height))


def _occupied(axes: Axes, label: Label, radius: float) -> list[Bbox]:
    """The pixels of a point and of its error bars."""
    x, y = axes.transData.transform((label.x, label.y))
    low = axes.transData.transform((label.x - label.x_error, label.y - label.y_error))
    high = axes.transData.transform((label.x + label.x_error, label.y + label.y_error))
    bars = ((low[0], y), (high[0], y)), ((x, low[1]), (x, high[1]))
    found = [Bbox([[x - radius, y - radius], [x + radius, y + radius]])]
    for start, end in bars:
        (left, right), (bottom, top) = sorted((start[0], end[0])), sorted((start[1], end[1]))
        found.append(Bbox([[left - 2, bottom - 2], [right + 2, top + 2]]))
    return found


def _within(box: Bbox, outer: Bbox) -> bool:
    return bool(box.x0 >= outer.x0 and box.x1 <= outer.x1 and box.y0 >= outer.y0 and box.y1 <= outer.y1)


def _overlap(a: Bbox, b: Bbox) -> float:
    """Common area in square pixels."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(width, 0.0) * max(height, 0.0))
