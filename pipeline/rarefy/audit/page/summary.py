"""What the terminal says of an audit: the verdict with its reasons, the headline numbers, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

from rarefy.audit.metrics.kinds import metric_label
from rarefy.audit.page.figures import against_words, notes, required, training_words
from rarefy.audit.schema import AuditResult, MetricEntry
from rarefy.audit.verdict import judge, outcome
from rarefy.gates import metric_kind

ALSO = ("rarity", "fid")  # the verdict's reasons have the other headline numbers


def summary_lines(result: AuditResult) -> list[str]:
    """The lines of the summary, without line breaks."""
    return [*_problems(result), *_verdict(result), *_numbers(result), *_notes(result), *_gates(result)]


def figure(value: float | None) -> str:
    """Four significant digits; ``none`` for None."""
    return "none" if value is None else f"{value:.4g}"


def _problems(result: AuditResult) -> Iterator[str]:
    for problem in result.problems:
        yield f"problem: {problem.where}: {problem.what}"


def _verdict(result: AuditResult) -> Iterator[str]:
    verdict = judge(result)
    yield f"verdict: {verdict.headline}"
    for reason in verdict.reasons:
        yield f"  {outcome(reason)}: {reason.text}"
    if not verdict.reasons:
        yield from (f"  {line}" for line in verdict.lines)


def _numbers(result: AuditResult) -> Iterator[str]:
    for name, entry in result.metrics.items():
        if metric_kind(name) in ALSO:
            yield f"{metric_label(name)} {_with_baseline(entry)}"
    if words := against_words(result):
        yield words
    for measured in result.utility:
        for row in measured.trainings:
            low, high = row.accuracy_interval
            yield (
                f"accuracy of a {measured.classifier} trained on {training_words(row)}: {row.accuracy:.3f} "
                f"({low:.3f} to {high:.3f}), on the tail {row.tail_accuracy:.3f}"
            )


def _with_baseline(entry: MetricEntry) -> str:
    interval = "" if entry.interval is None else f" ({figure(entry.interval[0])} to {figure(entry.interval[1])})"
    return f"{figure(entry.value)}{interval}, real baseline {figure(entry.floor)}"


def _notes(result: AuditResult) -> Iterator[str]:
    yield from (f"note: {note}" for note in notes(result))


def _gates(result: AuditResult) -> Iterator[str]:
    for check in result.gates:
        if check.passed or check.advisory:
            continue
        boundary = "; its 95% interval contains the limit" if check.boundary else ""
        value = figure(check.value)
        yield f"gate failed: {check.metric} ({check.scope}) is {value}, required {required(check)}{boundary}"
