"""Checks that audits are comparable: what they must share, and an error that names what differs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from rarefy.audit.schema import AuditResult
from rarefy.errors import ShardError

# Fields of the whole audit that must be equal: the same real images with the same features.
SHARED = ("reference_sha256", "extractor_sha256", "extractor_layer", "preprocessing", "k")
# Fields of each metric that must be equal: the same neighbourhoods and numbers of images.
SHARED_BY_METRIC = ("k", "layer", "generated_count", "real_count", "floor_count", "sample_count")
SHOWN_NAMES, SHOWN_DIGITS = 2, 12


def check_footing(results: Mapping[str, AuditResult]) -> None:
    """Raise ShardError, in one line, unless the audits (by label) are comparable."""
    for label, result in results.items():
        if result.provenance.reference_sha256 is None:
            raise ShardError(f"compare: the audit of {label} has no reference images; run audit with --reference")
    differences: dict[tuple[str, tuple[str, ...]], list[str]] = {}  # metrics or classes by field and values
    for field, name, values in _fields(list(results.values())):
        if len(set(values)) > 1:
            differences.setdefault((field, tuple(_short(value) for value in values)), []).append(name)
    if differences:
        text = "; ".join(_text(*difference, names, list(results)) for difference, names in differences.items())
        raise ShardError(f"compare: the audits are not comparable: {text}")


def _fields(results: Sequence[AuditResult]) -> list[tuple[str, str, list[Hashable]]]:
    """Everything that must be equal, as (field, its metric or class, value per run)."""
    runs = [result.provenance for result in results]
    fields: list[tuple[str, str, list[Hashable]]] = [
        (name, "", [getattr(run, name) for run in runs]) for name in SHARED
    ]
    tails = [result.tail for result in results]
    fields.append(("tail", "", [tail and f"{tail.rule}, {tail.count}, {_short(tail.sha256)}" for tail in tails]))
    shared = [name for name in results[0].metrics if all(name in result.metrics for result in results)]
    for metric in shared:
        entries = [result.metrics[metric] for result in results]
        fields += [(name, metric, [getattr(entry, name) for entry in entries]) for name in SHARED_BY_METRIC]
    counts = [{row.class_name: row.count for row in result.per_class} for result in results]
    for name in dict.fromkeys(name for table in counts for name in table):
        fields.append(("images of the class", name, [table.get(name, 0) for table in counts]))
    return fields


def _text(field: str, values: tuple[str, ...], names: list[str], labels: list[str]) -> str:
    shown = ", ".join(f"{value} in {label}" for label, value in zip(labels, values, strict=True))
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    what = ", ".join(names[:SHOWN_NAMES])
    return f"{field} is {shown}" + (f" ({what}{more})" if what else "")


def _short(value: Hashable) -> str:
    text = str(value)
    return text[:SHOWN_DIGITS] if len(text) == 64 else text
