"""Gates: bounds on metrics that a data set must meet before it is used for training.

    [gates]
    recall = { min = 0.45 }
    coverage.per_class = { min = 0.6 }
    duplicates = { max = 0.001 }

They change no image and are not part of the manifest's digest, so bounds may change and the same run can be audited
again.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rarefy.errors import ManifestError, bad
from rarefy.fields import Table, get_number, get_table, known_keys, parse_toml

METRICS = (
    "fid", "kid", "inception_score", "precision", "recall", "tail_recall", "density", "coverage", "tail_coverage",
    "rarity", "outside", "avg_knn", "nearest", "lof", "duplicates", "copies", "on_class_rate", "on_class_guiding",
)  # fmt: skip
PER_CLASS = (
    "count", "precision", "recall", "coverage", "on_class_rate", "confidence", "entropy", "confidence_w1",
    "entropy_w1", "acceptance_rate",
)  # fmt: skip
OF_CLASSIFIER = ("on_class_rate", "on_class_guiding", "confidence", "entropy", "confidence_w1", "entropy_w1")
NAMED_AFTER_EXTRACTOR = ("fid", "kid")
FAR = 1e12
WHOLE_SET = "all"


@dataclass(frozen=True)
class Gate:
    """One bound. bound: ``min`` or ``max``; per_class: applies to each planned class."""

    metric: str
    bound: str
    limit: float
    per_class: bool = False


@dataclass(frozen=True)
class GateCheck:
    """A gate's outcome. scope: ``all`` or a class name; value: None if the audit could not measure it."""

    metric: str
    scope: str
    bound: str
    limit: float
    value: float | None
    passed: bool


def metric_kind(name: str) -> str:
    """The kind behind a name of metrics.json: ``fid`` for ``fid_efficientnet_lite0``."""
    return next((kind for kind in NAMED_AFTER_EXTRACTOR if name.startswith(f"{kind}_")), name)


def parse_gates(table: Table) -> tuple[Gate, ...]:
    """The gates of a ``[gates]`` table, in order. Raises ManifestError."""
    gates: list[Gate] = []
    for name in table:
        bounds = get_table(table, f"gates.{name}")
        known_keys(bounds, f"gates.{name}", ("min", "max", "per_class"))
        whole = {key: bounds[key] for key in bounds if key != "per_class"}
        if whole or not bounds:
            gates += _bounds(name, f"gates.{name}", whole, METRICS)
        if "per_class" in bounds:
            field = f"gates.{name}.per_class"
            gates += _bounds(name, field, get_table(bounds, field), PER_CLASS)
    return tuple(gates)


def load_gates(path: str) -> tuple[Gate, ...]:
    """The ``[gates]`` of a TOML file, which may be a whole manifest. Raises ManifestError."""
    try:
        root = parse_toml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ManifestError is a ValueError
        raise ManifestError(bad("gates", path, f"a readable TOML file ({' '.join(str(error).split())})")) from None
    return parse_gates(get_table(root, "gates"))


def check_measurable(gates: Iterable[Gate]) -> None:
    """Raise ManifestError for a gate on what a model without a classifier leaves out."""
    for gate in gates:
        if gate.metric in OF_CLASSIFIER:
            field = f"gates.{gate.metric}{'.per_class' if gate.per_class else ''}.{gate.bound}"
            raise ManifestError(bad(field, gate.limit, "measurable: this model has no classifier"))


def check_gates(
    gates: Iterable[Gate], metrics: Mapping[str, float], per_class: Iterable[Mapping[str, Any]]
) -> list[GateCheck]:
    """Check gates against metrics by name and the rows of the class table. A missing value does not pass."""
    rows, checks = list(per_class), []
    for gate in gates:
        if gate.per_class:
            values = [(str(row["class_name"]), row.get(gate.metric)) for row in rows]
        else:
            values = [(WHOLE_SET, _find(gate.metric, metrics))]
        checks += [GateCheck(gate.metric, scope, gate.bound, gate.limit, v, _passes(gate, v)) for scope, v in values]
    return checks


def gate_verdict(checks: Iterable[GateCheck]) -> str:
    """``passed``, ``failed`` or ``no gates``."""
    results = [check.passed for check in checks]
    return "no gates" if not results else "passed" if all(results) else "failed"


def _passes(gate: Gate, value: float | None) -> bool:
    if value is None or math.isnan(value):
        return False
    return value >= gate.limit if gate.bound == "min" else value <= gate.limit


def _find(name: str, metrics: Mapping[str, float]) -> float | None:
    """The metric with that name; fid and kid match with or without the extractor's name that the audit appends."""
    return next((value for key, value in metrics.items() if name in (key, metric_kind(key))), None)


def _bounds(name: str, field: str, table: Table, allowed: tuple[str, ...]) -> list[Gate]:
    if metric_kind(name) not in allowed:
        near = difflib.get_close_matches(name, allowed, 1, 0.5)
        hint = f"nearest: {near[0]}" if near else f"known: {', '.join(allowed)}"
        raise ManifestError(bad(field, name, f"a metric that a gate can use here ({hint})"))
    known_keys(table, field, ("min", "max"))
    if not table:
        raise ManifestError(bad(field, dict(table), "a bound such as { min = 0.5 }"))
    limits = {bound: get_number(table, f"{field}.{bound}", -FAR, FAR, 0.0) for bound in table}
    if len(limits) == 2 and limits["min"] > limits["max"]:
        raise ManifestError(bad(f"{field}.min", limits["min"], f"at most {field}.max = {limits['max']!r}"))
    return [Gate(name, bound, limit, allowed is PER_CLASS) for bound, limit in limits.items()]
