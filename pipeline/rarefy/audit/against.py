"""The numbers of plain sampling next to a run's: of the audit that ``--against`` names, or those stored with a model.

Only what is comparable is compared: the same real images, features and k, and classes in the same proportions. Metrics
whose value depends on the number of images are compared at equal numbers only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rarefy.audit.footing import SHARED
from rarefy.audit.schema import Against, AuditResult, Provenance, read_result
from rarefy.errors import OutputError, bad
from rarefy.gates import metric_kind
from rarefy.models.folder import LIBRARY
from rarefy.shards.store import Store

STORED = "plain.json"  # in the folder of a model that ships
FORMAT = "rarefy-plain-v1"
# Means over images, and estimates without bias: their expected values do not depend on how many images there are.
OF_ANY_COUNT = frozenset(
    {"precision", "density", "rarity", "outside", "avg_knn", "nearest", "copies", "on_class_rate", "kid"}
    | {"authenticity", "clipped_density", "cmmd", "fd_infinity"}
)
SAME_RUN = ("sampler", "precision", "checkpoint_sha256", "classifier_sha256")

Shared = Mapping[str, object]


@dataclass(frozen=True)
class PlainSampling:
    """Audits of plain sampling, with equal settings and counts. metrics, spread: mean and standard deviation over them.

    shared: what two audits must share (SHARED) to be compared; sampler, precision and weights: as in ``Provenance``;
    classes: images by class name; images: number that was measured, in each run; runs: number of runs.
    """

    sampler: str
    precision: str
    checkpoint_sha256: str
    classifier_sha256: str | None
    shared: dict[str, object]
    classes: dict[str, int]
    images: int
    runs: int
    metrics: dict[str, float]
    spread: dict[str, float]

    def against(self) -> Against:
        """As an audit's result says it."""
        times = f"{self.runs} runs" if self.runs > 1 else "1 run"
        return Against("plain sampling", f"stored with the model, mean of {times}", self.images, [], self.metrics)


def read_against(out: str, own: Store) -> AuditResult:
    """The audit in the folder that ``--against`` names. Raises OutputError or ShardError if there is none."""
    store = Store(out)
    if store.root == own.root:
        raise OutputError(bad("against", out, "another run's folder"))
    try:
        return read_result(store)
    except OutputError:
        raise OutputError(bad("against", out, "a folder with an audit (audit/metrics.json); run audit there")) from None


def check_against(out: str, other: AuditResult, shared: Shared) -> None:
    """Raise OutputError unless that audit has this one's real images, features and k (``shared``)."""
    for name, value in shared_of(other.provenance).items():
        if value != shared[name] or value is None:
            allowed = f"comparable: {name} is {_short(value)} there and {_short(shared[name])} here"
            raise OutputError(bad("against", out, allowed))


def compare_with(out: str, other: AuditResult, result: AuditResult) -> Against:
    """What is comparable of that audit. Raises OutputError if its classes are others or in other proportions."""
    theirs, own = class_counts(other), class_counts(result)
    if not proportional(theirs, own):
        name = next(name for name in {**own, **theirs} if _share(theirs, name) != _share(own, name))
        allowed = f"comparable: {_share(theirs, name):.1%} of its images are of {name}, here {_share(own, name):.1%}"
        raise OutputError(bad("against", out, allowed))
    values = {name: entry.value for name, entry in other.metrics.items()}
    equal = theirs == own and other.provenance.measured == result.provenance.measured
    run = other.provenance
    return Against(run.run, out, run.measured, run.guidance, comparable(values, equal))


def stored_against(result: AuditResult, rows: Iterable[PlainSampling]) -> Against | None:
    """The stored numbers for the run's model and sampler: at its counts, else those of most images; None for none."""
    shared, own = shared_of(result.provenance), class_counts(result)
    same = [
        row
        for row in rows
        if row.shared == shared
        and all(getattr(row, name) == getattr(result.provenance, name) for name in SAME_RUN)
        and proportional(row.classes, own)
    ]
    if not same:
        return None
    equal = [row for row in same if row.classes == own and row.images == result.provenance.measured]
    best = equal[0] if equal else max(same, key=lambda row: row.images)
    against = best.against()
    return dataclasses.replace(against, metrics=comparable(against.metrics, bool(equal)))


def stored_plain() -> list[PlainSampling]:
    """The numbers that ship with the models."""
    tables = [json.loads(path.read_bytes()) for path in sorted(LIBRARY.glob(f"*/{STORED}"))]
    return [PlainSampling(**row) for table in tables if table["format"] == FORMAT for row in table["rows"]]


def shared_of(provenance: Provenance) -> dict[str, object]:
    """What two audits must share to be compared."""
    return {name: getattr(provenance, name) for name in SHARED}


def class_counts(result: AuditResult) -> dict[str, int]:
    """Images by class name, without classes that have none."""
    return {row.class_name: row.count for row in result.per_class if row.count}


def comparable(metrics: Mapping[str, float], equal_counts: bool) -> dict[str, float]:
    """The metrics that may be compared with those of a set of another size, or all if the sizes are equal."""
    return {name: value for name, value in metrics.items() if equal_counts or metric_kind(name) in OF_ANY_COUNT}


def proportional(first: Mapping[str, int], second: Mapping[str, int]) -> bool:
    """Whether two sets have the same classes in the same proportions."""
    totals = sum(first.values()), sum(second.values())
    return all(first.get(name, 0) * totals[1] == second.get(name, 0) * totals[0] for name in {*first, *second})


def _share(counts: Mapping[str, int], name: str) -> float:
    return counts.get(name, 0) / max(1, sum(counts.values()))


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
