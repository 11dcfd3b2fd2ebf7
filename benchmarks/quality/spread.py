"""Means and standard deviations over a method's seeds, from the rows of docs/results.json; how numbers are written."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quality.texts import DESCRIPTIONS

Row = Mapping[str, Any]

SEEDS = 3
"""Seeds a method in the finished experiment."""
HEADINGS = {
    "fid": "FID", "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage",
    "tail_recall": "tail recall", "tail_coverage": "tail coverage", "rarity": "rarity", "avg_knn": "AvgkNN",
    "confidence": "confidence", "entropy": "entropy", "on_class": "on class", "guide_on_class": "on class (guide)",
    "images_per_s": "images/s",
}  # fmt: skip
EXTRA = {"variance": "variance"}
"""Numbers that only the later rows of the sweep have."""
LOWER_IS_BETTER = frozenset({"fid"})
UNCONDITIONAL = "uncond-"


@dataclass(frozen=True)
class Spread:
    """One metric over seeds. std: of one seed's value, with n - 1; None where there is one seed."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        if not self.std:
            return number(self.mean) if self.std is None else f"{number(self.mean)} ± 0"
        decimals = max(1 - math.floor(math.log10(self.std)), 0)  # two digits of the deviation, and as many of the mean
        return f"{self.mean:.{decimals}f} ± {self.std:.{decimals}f}"


@dataclass(frozen=True)
class Group:
    """A method's rows, by seed. values: by the keys of HEADINGS that every row has a number for."""

    method: str
    rows: tuple[Row, ...]
    values: Mapping[str, Spread]

    @property
    def unconditional(self) -> bool:
        """Whether its U-Net sees no class."""
        return self.method.startswith(UNCONDITIONAL)

    @property
    def seeds(self) -> list[int]:
        """Its rows' seeds, ascending."""
        return [row["seed"] for row in self.rows]


def groups(results: Mapping[str, Any]) -> dict[str, Group]:
    """The final rows by method, the conditional ones first, in the order of DESCRIPTIONS, others behind them."""
    found: dict[str, list[Row]] = {}
    for row in results["final"]:
        found.setdefault(row["method"], []).append(row)
    return {method: _group(method, sorted(found[method], key=_seed)) for method in sorted(found, key=_place)}


def _seed(row: Row) -> int:
    return int(row["seed"])


def _place(method: str) -> tuple[bool, int, str]:
    known, name = list(DESCRIPTIONS), method.removeprefix(UNCONDITIONAL)
    return method.startswith(UNCONDITIONAL), known.index(name) if name in known else len(known), name


def _group(method: str, rows: Sequence[Row]) -> Group:
    columns = {name: [row.get(name) for row in rows] for name in HEADINGS}
    values = {name: spread(column) for name, column in columns.items() if all(map(is_number, column))}
    return Group(method, tuple(rows), values)


def spread(values: Sequence[Any]) -> Spread:
    """Mean and standard deviation of at least one number."""
    return Spread(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def pooled_std(a: Spread, b: Spread) -> float | None:
    """Root mean square of two methods' standard deviations; None where one of them has a single seed."""
    return None if a.std is None or b.std is None else math.sqrt((a.std**2 + b.std**2) / 2)


def paired_difference(a: Group, b: Group, name: str) -> Spread | None:
    """a's value less b's at the same seed; None where their seeds differ or are fewer than two."""
    if a.seeds != b.seeds or len(a.seeds) < 2:
        return None
    return spread([ours[name] - theirs[name] for ours, theirs in zip(a.rows, b.rows, strict=True)])


def is_number(value: object) -> bool:
    """Whether a metric is there: not None, not NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def in_order(value: object) -> tuple[bool, float, str]:
    """Key to sort by: numbers by size, anything else behind them."""
    if is_number(value):
        assert isinstance(value, int | float)
        return False, float(value), ""
    return True, 0.0, json.dumps(value)


def number(value: object, digits: int = 4) -> str:
    """A value with that many significant digits, without an exponent where it is large; empty where there is none."""
    if not is_number(value):
        return ""
    assert isinstance(value, int | float)
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"
