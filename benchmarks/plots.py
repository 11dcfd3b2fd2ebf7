"""Draw what other commands found: ``python benchmarks/plots.py --out docs --bench BENCH.json ... --step STEP.jsonl``.

--bench takes files that ``rarefy bench --growth --actors 1,2 --json`` wrote and leaves OUT/performance-growth.svg.
--step takes a file of the last lines of ``benchmarks/step.py --json``, a model a line, and leaves
OUT/performance-step.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Row = Mapping[str, Any]

PARTS = {"unet": "U-Net", "classifier_forward": "classifier forward", "classifier_backward": "backward", "rest": "rest"}
COLORS = {"fast": "#2b6fd6", "exact": "#a9670a"}
PART_COLORS = ("#2b6fd6", "#a9670a", "#1b7f4b", "#7a4fc0")
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "rarefy",  # the same numbers give the same file
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
}


def growth(results: Sequence[Row]) -> Figure:
    """Images a second against batch and processes, time of an image's step against its size; a line a precision."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    by_batch, by_size, by_actors = figure.subplots(1, 3)
    for result in results:
        style = {"color": COLORS[result["precision"]], "marker": "o", "label": result["precision"]}
        batches = sorted(result["batches"], key=lambda point: point["batch"])
        by_batch.plot([p["batch"] for p in batches], [p["images_per_second"] for p in batches], **style)
        sizes = result["sizes"]
        by_size.plot([p["image_size"] for p in sizes], [1e3 * p["seconds_a_step"] / p["batch"] for p in sizes], **style)
        by_size.set_xticks([p["image_size"] for p in sizes])
        actors = result["actors"]
        by_actors.plot([p["actors"] for p in actors], [p["images_per_second"] for p in actors], **style)
        by_actors.set_xticks([p["actors"] for p in actors])
    by_batch.set_xscale("log", base=2)
    _name(by_batch, "images/s of the whole chain", "batch")
    _name(by_size, "ms an image and step", "image height and width")
    _name(by_actors, "images/s of the whole chain", "processes of one thread")
    by_batch.legend(frameon=False)
    return figure


def steps(results: Sequence[Row]) -> Figure:
    """Seconds of a step's parts, a panel a model, a bar a form."""
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for panel, result in zip(panels, results, strict=True):
        forms = list(result["split"])
        bottom = [0.0] * len(forms)
        for (part, label), color in zip(PARTS.items(), PART_COLORS, strict=True):
            heights = [result["split"][form][part] for form in forms]
            panel.bar(forms, heights, bottom=bottom, label=label, color=color, width=0.6)
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        _name(panel, "CPU seconds a step", f"{result['model']}, batch {result['batch']}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(PARTS), frameon=False)
    return figure


def _name(axes: Axes, y: str, x: str) -> None:
    axes.set_ylim(bottom=0)
    axes.set_ylabel(y)
    axes.set_xlabel(x)


def save(figure: Figure, path: Path) -> None:
    """Write an SVG without a date."""
    figure.savefig(path, metadata={"Date": None})
    print(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the SVG files")
    parser.add_argument("--bench", type=Path, nargs="+", default=[], help="JSON of rarefy bench, a precision a file")
    parser.add_argument("--step", type=Path, help="lines of benchmarks/step.py --json")
    arguments = parser.parse_args(argv)
    with rc_context(STYLE):
        if arguments.bench:
            found = [json.loads(path.read_text()) for path in arguments.bench]
            save(growth(found), arguments.out / "performance-growth.svg")
        if arguments.step:
            lines = arguments.step.read_text().splitlines()
            save(steps([json.loads(line) for line in lines]), arguments.out / "performance-step.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
