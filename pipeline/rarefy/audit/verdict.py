"""The audit's verdict: each metric that decides whether a set can be trained on, against its real baseline.

A metric's level is close, usable or far. It is far if it fails a gate on the whole set: the user's, or else the default
one (rarefy.gates.DEFAULT_GATES). The limit between close and usable is in CLOSE. A metric whose default gate is
switched off is not judged. The set has the level of its worst metric, with any of the extractors. Where another draw of
images could change the level, because a 95% interval contains a limit, the verdict says "at the boundary".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from rarefy.audit.metrics.kinds import metric_label
from rarefy.audit.schema import AuditResult, MetricEntry, Reason, TailSummary, Verdict
from rarefy.gates import DEFAULT_GATES, RELATIVE, WHOLE_SET, Gate, GateCheck, meets

LEVELS = ("close", "usable", "far")
NONE = "none"
CLOSE = {
    "recall": 0.9, "tail_recall": 0.9, "precision": 0.9, "coverage": 0.9, "on_class_rate": 0.9,
    "copies": 0.01, "duplicates": 0.01, "utility": 0.0,
}  # fmt: skip
HEADLINES = {
    "close": "Close to real data",
    "usable": "Usable, but short of real data",
    "far": "Far from real data",
    NONE: "Cannot be judged: no metric has a real baseline above 0",
}
NO_GATES = "Not judged: the default gates are switched off"
OF_FEATURES = ("recall", "tail_recall", "precision", "coverage")
LIMITS = (
    "Recall, tail recall, precision, coverage and the on-class rate are close from 90% of the real baseline and usable "
    "from 75%; copies and duplicates are close up to 0.01 above it and usable up to 0.05; utility is close from 0 and "
    "usable from -0.01. A gate of your own on the whole set replaces the limit of usable for its metric. The set has "
    "the level of its worst metric."
)
NO_REFERENCE = "Give the audit a folder of real images to measure recall and precision with their real baselines."


def judge(result: AuditResult) -> Verdict:
    """Judge a set by its audit: the worst of recall, tail recall, precision, coverage, on-class rate, copies,
    duplicates and utility, as far as they were measured and have a gate."""
    verdict = Verdict(NONE, "No real images to compare with", [NO_REFERENCE], [])
    if result.tail is not None:
        verdict = _by_comparison(result)
    if result.verdict == "failed":
        verdict = replace(verdict, level="far", headline=f"Gates failed. {verdict.headline}")
    return verdict


def _by_comparison(result: AuditResult) -> Verdict:
    reasons = sorted(_reasons(result), key=_severity)
    judged = [reason for reason in reasons if reason.level != NONE]
    if not reasons:
        return Verdict(NONE, NO_GATES, _lines(result), [])
    level = judged[0].level if judged else NONE
    headline = HEADLINES[level] + _names(level, judged) + _boundary(level, judged)
    measured = sum(gate.metric in result.metrics for gate in DEFAULT_GATES)
    if level == "close" and (result.partial or len({reason.metric for reason in judged}) < measured):
        level = "usable"
        headline = "Close to real data as far as it was judged"
    return Verdict(level, headline, _lines(result), reasons)


def outcome(reason: Reason) -> str:
    """A reason's level in words, with "at the boundary" if its interval contains a limit."""
    if reason.level == NONE:
        return "not judged"
    if reason.best == reason.worst:
        return reason.level
    return f"{reason.level}, {_between(reason.level, reason.best, reason.worst)}"


def _reasons(result: AuditResult) -> Iterator[Reason]:
    for default in DEFAULT_GATES:
        entry = result.metrics.get(default.metric)
        if entry is None:
            continue
        gates = _gates(default, entry, result.gates)
        if not gates:
            continue
        yield _reason(default, gates, entry, None)
        # A bound on the value itself is meant for the main extractor's features.
        others = [gate for gate in gates if gate.bound.endswith(RELATIVE)] or [default]
        for extractor, entries in result.other_extractors.items():
            if default.metric in OF_FEATURES and default.metric in entries:
                yield _reason(default, others, entries[default.metric], extractor)


def _gates(default: Gate, entry: MetricEntry, checks: Iterable[GateCheck]) -> list[Gate]:
    """The gates on the whole set for a metric: the user's or the default one; none if that is switched off."""
    found = [
        Gate(check.metric, check.bound, check.limit)
        for check in checks
        if (check.metric, check.scope) == (default.metric, WHOLE_SET)
    ]
    # A default gate that cannot be checked is not among the checks either.
    measurable = meets(default.bound, default.limit, entry.value, entry.floor) is not None
    return found if found or measurable else [default]


def _reason(default: Gate, gates: Sequence[Gate], entry: MetricEntry, extractor: str | None) -> Reason:
    level = _level(default, gates, entry.value, entry.floor)
    levels = [level, *(_level(default, gates, end, entry.floor) for end in entry.interval or ())]
    best, worst = min(levels, key=_rank), max(levels, key=_rank)
    against = _why_not(entry) if level == NONE else _against(default, entry)
    text = f"{_label(default.metric, extractor)} {_value(entry)}{against}"
    return Reason(default.metric, extractor, level, best, worst, text)


def _level(default: Gate, gates: Sequence[Gate], value: float, baseline: float | None) -> str:
    close = replace(default, limit=CLOSE[default.metric])
    *met, is_close = [meets(gate.bound, gate.limit, value, baseline) for gate in (*gates, close)]
    if is_close is None or None in met:
        return NONE
    return "far" if not all(met) else "close" if is_close else "usable"


def _value(entry: MetricEntry) -> str:
    return f"{entry.value:.3f}" + (f" ({_interval(entry.interval)})" if entry.interval else "")


def _against(gate: Gate, entry: MetricEntry) -> str:
    """The real baseline, and how much of it is reached."""
    if entry.floor is None:
        return ""
    spread = f" ({_interval(entry.floor_interval)})" if entry.floor_interval else ""
    share = f": {entry.value / entry.floor:.0%} of it" if gate.bound.endswith("_ratio") else ""
    return f", real baseline {entry.floor:.3f}{spread}{share}"


def _interval(bounds: Sequence[float]) -> str:
    return f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def _why_not(entry: MetricEntry) -> str:
    why = "was not measured" if entry.floor is None else f"is {entry.floor:g}"
    return f", but its real baseline {why}"


def _between(level: str, best: str, worst: str) -> str:
    """Where another draw of images could put it."""
    if level in (best, worst):
        return f"at the boundary to {best if level == worst else worst}"
    return f"anywhere between {best} and {worst}"


def _boundary(level: str, judged: Sequence[Reason]) -> str:
    """What the headline says if the intervals allow another level; empty if they do not."""
    if level == NONE:
        return ""
    best, worst = (max((getattr(reason, end) for reason in judged), key=_rank) for end in ("best", "worst"))
    return "" if best == worst else f", {_between(level, best, worst)}"


def _names(level: str, judged: Sequence[Reason]) -> str:
    """The metrics that keep the set from a better level."""
    if level in ("close", NONE):
        return ""
    labels = [_label(reason.metric, reason.extractor) for reason in judged if reason.level == level]
    labels = [label[0].lower() + label[1:] for label in labels]
    return ": " + (" and ".join([", ".join(labels[:-1]), labels[-1]]) if len(labels) > 1 else labels[0])


def _label(metric: str, extractor: str | None) -> str:
    return metric_label(metric) + (f" with {extractor}" if extractor else "")


def _rank(level: str) -> int:
    return -1 if level == NONE else LEVELS.index(level)


def _severity(reason: Reason) -> tuple[int, int]:
    return -_rank(reason.level), -_rank(reason.worst)


def _lines(result: AuditResult) -> list[str]:
    metrics, tail = result.metrics, result.tail
    assert tail is not None
    recall, precision, tail_recall, rarity = (metrics[k] for k in ("recall", "precision", "tail_recall", "rarity"))
    return [
        f"The set covers {recall.value:.0%} of the real images; the same number of held-out real images covers "
        f"{_percent(recall.floor)}. {_tail_words(tail)} it covers {tail_recall.value:.0%} "
        f"(real images: {_percent(tail_recall.floor)}).",
        f"{precision.value:.0%} of its images lie within the real data (real images: {_percent(precision.floor)}); "
        f"their mean rarity is {rarity.value:.3g} (real images: {_number(rarity.floor)}).",
    ]


def _tail_words(tail: TailSummary) -> str:
    if tail.rule == "keys":
        return f"Of the {tail.count:,} listed images"
    if tail.rule == "avgknn":
        return f"Of the rarest {tail.share:.0%} of each class"
    return f"Of the {tail.share:.0%} of each class with the lowest confidence"


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"
