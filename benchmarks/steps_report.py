"""What a sweep over steps says: a table, the fewest steps as good as the reference's, a plot.

As good: over a row's seeds, mean FID, recall and on-class rate no worse than the reference's mean by more than two
standard deviations of one seed's value, as the reference's seeds show them. So it takes two seeds to judge.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.sax.saxutils import escape

DEVIATIONS = 2.0
HEADINGS = {
    "fid": "FID", "precision": "precision", "recall": "recall", "tail_recall": "tail recall", "coverage": "coverage",
    "on_class_rate": "on class", "confidence": "confidence", "entropy": "entropy",
    "cpu_seconds_an_image": "CPU s/image",
}  # fmt: skip
JUDGED = {"fid": -1, "recall": 1, "on_class_rate": 1}
"""What as good is judged by; 1 where higher is better."""

WIDTH, HEIGHT, LEFT, TOP, PANEL = 920, 400, 60, 50, 380
COLORS = ("#2b6fd6", "#a9670a", "#1b7f4b", "#b3362b", "#7a4fc0")


@dataclass(frozen=True)
class Sweep:
    """rows as in rows.jsonl, the floor's metrics, the reference's solver and steps, what the rows share."""

    rows: tuple[Mapping[str, Any], ...]
    floor: Mapping[str, float]
    reference: tuple[str, int]
    common: Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """One line of the table: the mean over its seeds. values: by the keys of HEADINGS."""

    solver: str
    steps: int
    classifier_every: int
    seeds: tuple[int, ...]
    values: Mapping[str, float]


@dataclass(frozen=True)
class Limit:
    """The reference's mean of a metric, and how far below (or above) it a row may lie."""

    mean: float
    margin: float
    sign: int

    def holds(self, value: float) -> bool:
        """Whether the value is no worse than that."""
        return self.sign * (value - self.mean) >= -self.margin


def entries(sweep: Sweep) -> list[Entry]:
    """One entry a solver, steps and classifier_every, in the order of first appearance of the solver, then by steps."""
    groups: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for row in sweep.rows:
        setting = row["setting"]
        groups.setdefault((setting["solver"], setting["steps"], setting["classifier_every"]), []).append(row)
    order = list(dict.fromkeys(solver for solver, _, _ in groups))
    found = []
    for key in sorted(groups, key=lambda key: (order.index(key[0]), key[1:])):
        rows = groups[key]
        values = [_values(row["metrics"]) for row in rows]
        means = {name: statistics.fmean(value[name] for value in values) for name in values[0]}
        found.append(Entry(*key, tuple(sorted(row["setting"]["seed"] for row in rows)), means))
    return found


def limits(sweep: Sweep) -> dict[str, Limit]:
    """What to judge by, from the reference's seeds; empty where it has fewer than two."""
    rows = [
        _values(row["metrics"])
        for row in sweep.rows
        if (row["setting"]["solver"], row["setting"]["steps"]) == sweep.reference
        and row["setting"]["classifier_every"] == 1
    ]
    if len(rows) < 2:
        return {}
    found = {}
    for name, sign in JUDGED.items():
        column = [row[name] for row in rows]
        found[name] = Limit(statistics.fmean(column), DEVIATIONS * statistics.stdev(column), sign)
    return found


def fewest(sweep: Sweep) -> dict[str, Entry]:
    """By solver, the entry of fewest steps that is as good as the reference, a classifier pass at every step."""
    allowed = limits(sweep)
    found: dict[str, Entry] = {}
    for entry in entries(sweep):
        if entry.classifier_every == 1 and as_good(entry, allowed):
            found.setdefault(entry.solver, entry)
    return found


def as_good(entry: Entry, allowed: Mapping[str, Limit]) -> bool:
    """Whether an entry keeps every limit; False where there is none to keep."""
    return bool(allowed) and all(limit.holds(entry.values[name]) for name, limit in allowed.items())


def table(sweep: Sweep) -> str:
    """The sweep in Markdown, with what it was judged by and the fewest steps."""
    common, allowed = sweep.common, limits(sweep)
    extractor = next(name for name in sweep.floor if name.startswith("fid_")).removeprefix("fid_")
    titles = ["solver", "steps", "classifier every", "seeds", *HEADINGS.values(), "as good"]
    floor = ["real images", "", "", "", *_cells(_values(sweep.floor)), ""]
    body = [
        [
            entry.solver,
            *(str(entry.steps), str(entry.classifier_every), ",".join(map(str, entry.seeds))),
            *_cells(entry.values),
            "yes" if as_good(entry, allowed) else "no" if allowed else "",
        ]
        for entry in entries(sweep)
    ]
    lines = [titles, ["---"] * 4 + ["---:"] * len(HEADINGS) + ["---"], floor, *body]
    return "\n".join(
        [
            f"{common['preset']}, {common['images']} images a row, {common['precision']}, batch {common['batch']}; "
            f"FID, precision, recall and coverage on {extractor}; on class, confidence and entropy (nats) by the "
            "guiding classifier at t = 0; the first line is as many real training images.",
            f"Guidance: {common['guidance']}",
            "",
            *("| " + " | ".join(cells) + " |" for cells in lines),
            "",
            *conclusion(sweep),
        ]
    )


def conclusion(sweep: Sweep) -> list[str]:
    """What as good meant here, and the fewest steps: overall, then by solver."""
    allowed, found = limits(sweep), fewest(sweep)
    name = f"{sweep.reference[0]} with {sweep.reference[1]} steps"
    if not allowed:
        return [f"Not judged: {name} needs at least two seeds."]
    bounds = (
        f"{HEADINGS[key]} {'at least' if limit.sign > 0 else 'at most'} {limit.mean - limit.sign * limit.margin:.4g}"
        for key, limit in allowed.items()
    )
    lines = [f"As good as {name} (its mean, two standard deviations of a seed allowed): {', '.join(bounds)}."]
    if not found:
        return [*lines, "Fewest steps as good: none of these."]
    best = min(found.values(), key=lambda entry: (entry.steps, entry.values["fid"]))
    by_solver = ", ".join(f"{solver} {entry.steps}" for solver, entry in found.items())
    return [*lines, f"Fewest steps as good: {best.steps} with {best.solver} (by solver: {by_solver})."]


def summary(sweep: Sweep) -> dict[str, Any]:
    """The sweep as JSON types."""
    return {
        "common": dict(sweep.common),
        "floor": dict(sweep.floor),
        "rows": [asdict(entry) for entry in entries(sweep)],
        "limits": {name: asdict(limit) for name, limit in limits(sweep).items()},
        "fewest_steps": {solver: entry.steps for solver, entry in fewest(sweep).items()},
    }


def curves(sweep: Sweep) -> str:
    """SVG: recall and FID against steps (on a log scale), a line a solver; dashed: real images; band: as good."""
    found = [entry for entry in entries(sweep) if entry.classifier_every == 1]
    names = list(dict.fromkeys(entry.solver for entry in found))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"',
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for number, name in enumerate(("recall", "fid")):
        parts += _panel(sweep, found, name, LEFT + number * (PANEL + 80))
    for number, solver in enumerate(names):
        x = LEFT + number * 160
        parts.append(f'<circle cx="{x}" cy="{HEIGHT - 12}" r="4" fill="{COLORS[number % len(COLORS)]}"/>')
        parts.append(f'<text x="{x + 8}" y="{HEIGHT - 8}">{escape(solver)}</text>')
    return "\n".join([*parts, "</svg>"])


def _panel(sweep: Sweep, found: Sequence[Entry], name: str, left: int) -> list[str]:
    floor, limit = _values(sweep.floor)[name], limits(sweep).get(name)
    values = [entry.values[name] for entry in found] + [floor]
    low, high = min(values), max(values)
    steps = sorted({entry.steps for entry in found})
    width, height = PANEL, HEIGHT - TOP - 70

    def x(count: int) -> float:
        return left + width * math.log(count / steps[0]) / (math.log(steps[-1] / steps[0]) or 1.0)

    def y(value: float) -> float:
        return TOP + height * (high - value) / ((high - low) or 1.0)

    parts = [f'<text x="{left}" y="{TOP - 20}" font-size="14">{HEADINGS[name]} against steps</text>']
    if limit is not None:
        top, bottom = sorted((y(limit.mean), y(limit.mean - limit.sign * limit.margin)))
        parts.append(f'<rect x="{left}" y="{top:.1f}" width="{width}" height="{bottom - top:.1f}" fill="#e3e3de"/>')
    parts.append(f'<path d="M{left} {y(floor):.1f}h{width}" stroke="#5d6068" stroke-dasharray="5 4"/>')
    for value in (low + (high - low) * k / 4 for k in range(5)):
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for count in steps:
        parts.append(f'<text x="{x(count):.1f}" y="{TOP + height + 20}" text-anchor="middle">{count}</text>')
    for number, solver in enumerate(dict.fromkeys(entry.solver for entry in found)):
        color = COLORS[number % len(COLORS)]
        points = [(x(entry.steps), y(entry.values[name])) for entry in found if entry.solver == solver]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{color}"/>' for a, b in points]
    return parts


def _values(metrics: Mapping[str, float]) -> dict[str, float]:
    """By the keys of HEADINGS: a metric's name without its extractor; NaN where a set has none."""
    short = {"fid" if name.startswith("fid_") else name: value for name, value in metrics.items()}
    return {name: short.get(name, math.nan) for name in HEADINGS}


def _cells(values: Mapping[str, float]) -> list[str]:
    return ["" if math.isnan(value) else f"{value:.4g}" for value in values.values()]
