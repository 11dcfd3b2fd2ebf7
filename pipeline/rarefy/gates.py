"""Gates: bounds on metrics that a data set must meet before it is used for training.

    [gates]
    recall = { min_ratio = 0.8 }
    coverage.per_class = { min = 0.6 }
    copies = { max_excess = 0.01 }

min and max bound the value itself; min_ratio and max_ratio the value over its real baseline, and max_excess what it has
above its real baseline. The default gates are relative, so they do not depend on the number of images. They are
advisory: they decide the audit's verdict but fail no command, unless ``default = true``. ``default = false`` removes
them, and a gate on the same metric replaces its default.

Gates change no image and are not part of the manifest's digest, so bounds may change and the same run can be audited
again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rarefy.errors import ManifestError, bad, hint, near_path
from rarefy.fields import Table, get_number, get_table, known_keys, parse_toml

METRICS = (
    "fid", "fd_infinity", "kid", "cmmd", "inception_score", "precision", "recall", "tail_recall", "density", "coverage",
    "tail_coverage", "clipped_density", "clipped_coverage", "vendi", "rarity", "outside", "avg_knn", "nearest", "lof",
    "duplicates", "copies", "authenticity", "ct", "utility", "tail_utility", "on_class_rate", "on_class_guiding",
)  # fmt: skip
PER_CLASS = (
    "count", "copies", "precision", "recall", "tail_recall", "coverage", "rarity", "vendi", "utility",
    "on_class_rate", "confidence", "entropy", "confidence_w1", "entropy_w1", "acceptance_rate",
)  # fmt: skip
OF_CLASSIFIER = ("on_class_rate", "on_class_guiding", "confidence", "entropy", "confidence_w1", "entropy_w1")
NAMED_AFTER_EXTRACTOR = ("fid", "fd_infinity", "kid", "cmmd")
FAR = 1e12
WHOLE_SET = "all"
BOUNDS = ("min", "max", "min_ratio", "max_ratio", "max_excess")
RELATIVE = ("_ratio", "_excess")  # endings of the bounds that are relative to the real baseline
DEFAULT = "default"


@dataclass(frozen=True)
class Gate:
    """One bound. bound: one of BOUNDS; per_class: applies to each planned class.

    default: not written by the user, so it is skipped where the audit did not measure its metric; advisory: judged and
    shown, but it fails no command.
    """

    metric: str
    bound: str
    limit: float
    per_class: bool = False
    default: bool = False
    advisory: bool = False


@dataclass(frozen=True)
class GateCheck:
    """A gate's outcome. scope: ``all`` or a class name; value: None if the audit could not measure it.

    baseline: the real baseline, None if there is none; boundary: the 95% interval of the value contains the limit, so
    another draw of images could give the other outcome; default, advisory: as in ``Gate``.
    """

    metric: str
    scope: str
    bound: str
    limit: float
    value: float | None
    passed: bool
    baseline: float | None = None
    boundary: bool = False
    default: bool = False
    advisory: bool = False


@dataclass(frozen=True)
class Reading:
    """What a gate is checked against: a metric's value, its 95% interval and its real baseline."""

    value: float | None
    interval: Sequence[float] | None = None
    baseline: float | None = None


def _default(metric: str, bound: str, limit: float) -> Gate:
    return Gate(metric, bound, limit, default=True, advisory=True)


# Also the limits below which the audit's verdict is "far" (rarefy.audit.verdict).
DEFAULT_GATES = (
    _default("recall", "min_ratio", 0.75),
    _default("tail_recall", "min_ratio", 0.75),
    _default("precision", "min_ratio", 0.75),
    _default("coverage", "min_ratio", 0.75),
    _default("on_class_rate", "min_ratio", 0.75),
    _default("copies", "max_excess", 0.05),
    _default("duplicates", "max_excess", 0.05),
    _default("utility", "min", -0.01),
)


def metric_kind(name: str) -> str:
    """The kind behind a name of metrics.json: ``fid`` for ``fid_efficientnet_lite0``."""
    return next((kind for kind in NAMED_AFTER_EXTRACTOR if name.startswith(f"{kind}_")), name)


def parse_gates(table: Table) -> tuple[Gate, ...]:
    """The gates of a ``[gates]`` table, in order, and the default ones that it leaves. Raises ManifestError."""
    gates: list[Gate] = []
    for name in table:
        if name == DEFAULT:
            continue
        bounds = get_table(table, f"gates.{name}")
        known_keys(bounds, f"gates.{name}", (*BOUNDS, "per_class"))
        whole = {key: bounds[key] for key in bounds if key != "per_class"}
        if whole or not bounds:
            gates += _bounds(name, f"gates.{name}", whole, METRICS)
        if "per_class" in bounds:
            field = f"gates.{name}.per_class"
            gates += _bounds(name, field, get_table(bounds, field), PER_CLASS)
    return (*gates, *_defaults(table, {metric_kind(gate.metric) for gate in gates if not gate.per_class}))


def _defaults(table: Table, own: set[str]) -> list[Gate]:
    """The default gates on metrics without a gate of the user's. ``default`` is false, true or absent: see above."""
    wanted = table.get(DEFAULT)
    if not (wanted is None or isinstance(wanted, bool)):
        raise ManifestError(bad(f"gates.{DEFAULT}", wanted, "true or false"))
    if wanted is False:
        return []
    return [replace(gate, advisory=wanted is None) for gate in DEFAULT_GATES if gate.metric not in own]


def load_gates(path: str) -> tuple[Gate, ...]:
    """The ``[gates]`` of a TOML file, which may be a whole manifest. Raises ManifestError."""
    try:
        root = parse_toml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # ManifestError is a ValueError
        raise ManifestError(
            bad("gates", path, f"a readable TOML file ({' '.join(str(error).split())}){near_path(path)}")
        ) from None
    return parse_gates(get_table(root, "gates"))


def check_measurable(gates: Iterable[Gate]) -> None:
    """Raise ManifestError for a user's gate on what a model without a classifier leaves out."""
    for gate in gates:
        if gate.metric in OF_CLASSIFIER and not gate.default:
            field = f"gates.{gate.metric}{'.per_class' if gate.per_class else ''}.{gate.bound}"
            raise ManifestError(bad(field, gate.limit, "measurable: this model has no classifier"))


def check_gates(
    gates: Iterable[Gate], metrics: Mapping[str, Reading], per_class: Iterable[Mapping[str, Any]]
) -> list[GateCheck]:
    """Check gates against metrics by name and the rows of the class table.

    What was not measured, or has no real baseline although the bound is relative to it, does not pass a user's gate; a
    default gate is left out then.
    """
    rows, checks = list(per_class), []
    for gate in gates:
        if gate.per_class:
            readings = [(str(row["class_name"]), _class_reading(row, gate.metric)) for row in rows]
        else:
            readings = [(WHOLE_SET, _find(gate.metric, metrics))]
        asked = [pair for pair in readings if not gate.default or _limit(gate, pair[1]) is not None]
        checks += [_check(gate, scope, reading) for scope, reading in asked]
    return checks


def gate_verdict(checks: Iterable[GateCheck]) -> str:
    """``passed``, ``failed`` or ``no gates``; advisory gates do not count."""
    results = [check.passed for check in checks if not check.advisory]
    return "no gates" if not results else "passed" if all(results) else "failed"


def limit_on_value(bound: str, limit: float, baseline: float | None) -> float | None:
    """The limit as a bound on the metric's own value; None without a baseline, which for a ratio is positive."""
    if not bound.endswith(RELATIVE):
        return limit
    if baseline is None or (bound.endswith("_ratio") and baseline <= 0):
        return None
    return baseline + limit if bound.endswith("_excess") else baseline * limit


def meets(bound: str, limit: float, value: float, baseline: float | None) -> bool | None:
    """Whether a value keeps to a bound; None if that cannot be checked because there is no baseline."""
    on_value = limit_on_value(bound, limit, baseline)
    if on_value is None:
        return None
    return value >= on_value if bound.startswith("min") else value <= on_value


def at_boundary(limit: float, interval: Sequence[float] | None) -> bool:
    """Whether the interval contains the limit."""
    return interval is not None and interval[0] <= limit <= interval[1] and interval[0] < interval[1]


def _limit(gate: Gate, reading: Reading) -> float | None:
    """The bound on the metric's own value; None if it cannot be checked."""
    if reading.value is None or math.isnan(reading.value):
        return None
    return limit_on_value(gate.bound, gate.limit, reading.baseline)


def _check(gate: Gate, scope: str, reading: Reading) -> GateCheck:
    passed, boundary, limit = False, False, _limit(gate, reading)
    if limit is not None and reading.value is not None:
        passed = bool(meets(gate.bound, gate.limit, reading.value, reading.baseline))
        boundary = at_boundary(limit, reading.interval)
    outcome = reading.value, passed, reading.baseline, boundary, gate.default, gate.advisory
    return GateCheck(gate.metric, scope, gate.bound, gate.limit, *outcome)


def _class_reading(row: Mapping[str, Any], metric: str) -> Reading:
    baseline = row.get(f"{metric}_floor", row.get(f"reference_{metric}"))
    return Reading(row.get(metric), row.get(f"{metric}_interval"), baseline)


def _find(name: str, metrics: Mapping[str, Reading]) -> Reading:
    """The metric with that name; fid and the like match with or without the extractor's name that the audit appends."""
    return next((value for key, value in metrics.items() if name in (key, metric_kind(key))), Reading(None))


def _bounds(name: str, field: str, table: Table, allowed: tuple[str, ...]) -> list[Gate]:
    if metric_kind(name) not in allowed:
        raise ManifestError(bad(field, name, f"a metric that a gate can use here ({hint(name, allowed)})"))
    known_keys(table, field, BOUNDS)
    if not table:
        raise ManifestError(bad(field, dict(table), "a bound such as { min = 0.5 }"))
    limits = {bound: get_number(table, f"{field}.{bound}", -FAR, FAR, 0.0) for bound in table}
    for low, high in (("min", "max"), ("min_ratio", "max_ratio")):
        if low in limits and high in limits and limits[low] > limits[high]:
            raise ManifestError(bad(f"{field}.{low}", limits[low], f"at most {field}.{high} = {limits[high]!r}"))
    return [Gate(name, bound, limit, allowed is PER_CLASS) for bound, limit in limits.items()]
