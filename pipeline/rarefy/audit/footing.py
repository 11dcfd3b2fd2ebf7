"""Whether audits may be set beside each other: what they must share, and an error that names what they do not."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rarefy.errors import ShardError

# Of the whole audit: the same real images seen in the same way.
SHARED = ("reference_sha256", "extractor_sha256", "extractor_layer", "preprocessing", "k")
# Of every metric: the same neighbourhoods and as many images of each kind.
SHARED_BY_METRIC = ("k", "layer", "generated_count", "real_count", "floor_count", "sample_count")
SHOWN_NAMES, SHOWN_DIGITS = 2, 12

Row = dict[str, Any]


@dataclass(frozen=True)
class _Difference:
    """A field that differs, and its values in the order of the runs."""

    field: str
    values: tuple[str, ...]


def check_footing(results: Mapping[str, Row]) -> None:
    """Raise ShardError, in one line, unless the audits (content of metrics.json by label) are on equal footing."""
    for label, result in results.items():
        if result["provenance"]["reference_sha256"] is None:
            raise ShardError(f"compare: the audit of {label} has no reference images; give audit a --reference")
    found: dict[_Difference, list[str]] = {}
    for field, name, values in _fields(list(results.values())):
        if len(set(values)) > 1:
            found.setdefault(_Difference(field, tuple(_short(value) for value in values)), []).append(name)
    if found:
        told = "; ".join(_told(difference, names, list(results)) for difference, names in found.items())
        raise ShardError(f"compare: the audits are not on equal footing: {told}")


def _fields(results: Sequence[Row]) -> list[tuple[str, str, list[Hashable]]]:
    """(field, name of what it is of, value a run) of everything that must be equal."""
    runs = [result["provenance"] for result in results]
    found: list[tuple[str, str, list[Hashable]]] = [(field, "", [run[field] for run in runs]) for field in SHARED]
    tails = [result["tail"] for result in results]
    found.append(("tail", "", [f"{tail['rule']}, {tail['count']}, {_short(tail['sha256'])}" for tail in tails]))
    shared = [name for name in results[0]["metrics"] if all(name in result["metrics"] for result in results)]
    for name in shared:
        entries = [result["metrics"][name] for result in results]
        found += [(field, name, [entry.get(field) for entry in entries]) for field in SHARED_BY_METRIC]
    counts = [{row["class_name"]: row["count"] for row in result["per_class"]} for result in results]
    for name in dict.fromkeys(name for table in counts for name in table):
        found.append(("images of the class", name, [table.get(name, 0) for table in counts]))
    return found


def _told(difference: _Difference, names: list[str], labels: list[str]) -> str:
    values = ", ".join(f"{value} in {label}" for label, value in zip(labels, difference.values, strict=True))
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    what = ", ".join(names[:SHOWN_NAMES])
    return f"{difference.field} is {values}" + (f" ({what}{more})" if what else "")


def _short(value: Hashable) -> str:
    text = str(value)
    return text[:SHOWN_DIGITS] if len(text) == 64 else text
