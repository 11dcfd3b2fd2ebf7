"""The pictures of docs/: ``python -m benchmarks.pictures --plain out/plain --guided out/demo``.

docs/plain-and-guided.png shows the same noise without and with guidance; both runs must have the same seed.
docs/rare.svg explains rarity with points in a plane, and needs no run.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray
from PIL import Image

from benchmarks.quality.figures import STYLE
from rarefy.audit.inputs.dataset import read_manifest
from rarefy.plan import shard_names
from rarefy.shards.reader import read_samples
from rarefy.shards.store import Store

DOCS = Path(__file__).parents[1] / "docs"
SCALE, GAP, K = 2, 24, 3
REAL, RARE, OUTSIDE, INK = "#2b6fd6", "#c2410c", "#6b7280", "#1f2328"


def images_by_class(out: str, count: int) -> dict[int, list[NDArray[np.uint8]]]:
    """The first ``count`` images of each class, (C, H, W)."""
    store = Store(out)
    found: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)
    for name in shard_names(read_manifest(store)):
        for sample in read_samples(store, name):
            if len(found[sample.class_id]) < count:
                found[sample.class_id].append(sample.image)
    return dict(sorted(found.items()))


def side_by_side(plain: str, guided: str, count: int) -> Image.Image:
    """One line per class: images without guidance on the left, the same noise with guidance on the right."""
    halves = [
        np.concatenate([np.concatenate(row, axis=2) for row in images_by_class(out, count).values()], axis=1)
        for out in (plain, guided)
    ]
    enlarged = [half.repeat(SCALE, axis=1).repeat(SCALE, axis=2) for half in halves]
    gap = np.full((*enlarged[0].shape[:2], GAP), 255, np.uint8)
    whole = np.concatenate([enlarged[0], gap, enlarged[1]], axis=2)
    return Image.fromarray(whole[0] if whole.shape[0] == 1 else whole.transpose(1, 2, 0))


def radii(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance of each point to its K-th nearest other point."""
    distances: NDArray[np.float64] = np.linalg.norm(points[:, None] - points[None], axis=2)
    return np.sort(distances, axis=1)[:, K]


def rarity(point: NDArray[np.float64], real: NDArray[np.float64]) -> float | None:
    """The radius of the smallest ball around a real point that contains this one; None outside all balls."""
    sizes = radii(real)
    around = np.linalg.norm(real - point, axis=1) <= sizes
    return float(sizes[around].min()) if around.any() else None


def rare_figure() -> Figure:
    """Real points with their balls, and three generated ones: a common, a rare and an outside one."""
    rng = np.random.default_rng(3)
    dense = rng.normal((0.0, 0.0), 0.55, (26, 2))
    tail = np.array([[2.1, 0.5], [2.9, 1.3], [3.5, 0.4], [4.3, 1.2], [2.6, -0.7]])
    real = np.concatenate([dense, tail])
    figure = Figure(figsize=(6.4, 4.2), facecolor="white", layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    for place, radius in zip(real, radii(real), strict=True):
        _ball(axes, place, radius)
    axes.scatter(real[:, 0], real[:, 1], s=18, color=REAL, zorder=3, label="real images")
    generated = {"common": (0.15, -0.1), "rare": (3.2, 0.9), "outside": (5.0, -2.0)}
    for name, place in generated.items():
        _generated(axes, name, np.array(place), rarity(np.array(place), real))
    axes.set_xlim(-2.8, 6.8)
    axes.set_ylim(-2.9, 3.6)
    axes.legend(loc="upper center", frameon=False, labelcolor=INK, fontsize=12)
    return figure


def _ball(axes: Axes, place: NDArray[np.float64], radius: float) -> None:
    axes.add_patch(Circle((place[0], place[1]), radius, facecolor=REAL, alpha=0.06, edgecolor="none"))
    axes.add_patch(Circle((place[0], place[1]), radius, fill=False, edgecolor=REAL, alpha=0.3, linewidth=0.6))


def _generated(axes: Axes, name: str, place: NDArray[np.float64], value: float | None) -> None:
    color = {"common": INK, "rare": RARE, "outside": OUTSIDE}[name]
    text = f"{name}: in no ball" if value is None else f"{name}: rarity {value:.1f}"
    axes.scatter(place[0], place[1], s=70, marker="*", color=color, zorder=4)
    shift: dict[str, Any] = {"common": (-118, -84), "rare": (-2, 56), "outside": (-40, 18)}
    arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.8}
    axes.annotate(
        text, (place[0], place[1]), shift[name], textcoords="offset points", color=color, fontsize=12, arrowprops=arrow
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plain", help="run without guidance")
    parser.add_argument("--guided", help="run with guidance and the same seed")
    parser.add_argument("--count", type=int, default=8, help="images per class and run (default 8)")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures (default docs)")
    options = parser.parse_args()
    with rc_context(STYLE):
        rare_figure().savefig(options.out / "rare.svg", metadata={"Date": None})
    if options.plain and options.guided:
        side_by_side(options.plain, options.guided, options.count).save(
            options.out / "plain-and-guided.png", optimize=True
        )


if __name__ == "__main__":
    main()
