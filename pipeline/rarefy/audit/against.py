"""The numbers of plain sampling next to a run's: of the audit that ``--against`` names, or those stored with a model.

Only what is comparable is compared: the same model, sampler, real images, features and k, and classes in the same
proportions. Metrics whose value depends on the number of images are compared at equal numbers only.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rarefy.audit.footing import SHARED
from rarefy.audit.schema import Against, AuditResult, Provenance, read_result
from rarefy.errors import OutputError, bad
from rarefy.gates import metric_kind
from rarefy.manifest import Manifest
from rarefy.models.folder import LIBRARY
from rarefy.shards.store import Store

STORED = "plain.json"  # in the folder of a model that ships
FORMAT = "rarefy-plain-v1"
# Means over images, and estimates without bias: their expected values do not depend on how many images there are.
OF_ANY_COUNT = frozenset(
    {"precision", "density", "rarity", "outside", "avg_knn", "nearest", "on_class_rate", "kid"}
    | {"clipped_density", "cmmd", "fd_infinity"}
)
# They depend on the training images that an audit finds, which may be others elsewhere, so they are never compared.
OF_TRAINING = frozenset({"copies", "authenticity", "ct", "utility", "tail_utility"})
OF_TAIL = frozenset({"tail_recall", "tail_coverage"})
SAME_RUN = ("sampler", "precision", "checkpoint_sha256", "classifier_sha256")

NOT_PLAIN = ("accept", "select")  # tables of a manifest that choose among the images

Shared = Mapping[str, object]
Counts = Mapping[str, int]


@dataclass(frozen=True)
class PlainSampling:
    """Audits of plain sampling, with equal settings and counts. metrics, spread: mean and standard deviation over them.

    intervals: 95%, of the means, as far as the audits have them; tail_sha256: of the real images of the tail; shared:
    what two audits must share (SHARED) to be compared; sampler, precision and weights: as in ``Provenance``; classes:
    images by class name; images: number that was measured, in each run; runs: number of runs.
    """

    sampler: str
    precision: str
    checkpoint_sha256: str
    classifier_sha256: str | None
    tail_sha256: str | None
    shared: dict[str, object]
    classes: dict[str, int]
    images: int
    runs: int
    metrics: dict[str, float]
    spread: dict[str, float]
    intervals: dict[str, list[float]]

    def against(self) -> Against:
        """As an audit's result says it."""
        times = f"{self.runs} runs" if self.runs > 1 else "1 run"
        source = f"stored with the model, {'mean of ' if self.runs > 1 else ''}{times}"
        return Against("plain sampling", source, self.images, self.metrics, self.intervals)


def read_against(out: str, own: Store) -> AuditResult:
    """The audit in the folder that ``--against`` names. Raises OutputError or ShardError if there is none."""
    store = Store(out)
    if store.root == own.root:
        raise OutputError(bad("against", out, "another run's folder"))
    try:
        return read_result(store)
    except OutputError:
        raise OutputError(bad("against", out, "a folder with an audit (audit/metrics.json); run audit there")) from None


def check_against(out: str, other: AuditResult, own: Shared, counts: Counts) -> None:
    """Raise OutputError unless that audit is of plain sampling and comparable.

    own: fields of ``Provenance`` that must be equal; counts: images by class name, whose proportions must be.
    """
    if not is_plain(other):
        raise OutputError(bad("against", out, "a run of plain sampling, without guidance, [accept] and [select]"))
    for name, value in own.items():
        theirs = getattr(other.provenance, name)
        if value != theirs or (value is None and name == "reference_sha256"):
            allowed = f"comparable: {name} is {_short(theirs)} there and {_short(value)} here"
            raise OutputError(bad("against", out, allowed))
    found = class_counts(other)
    if not proportional(found, counts):
        name = next(name for name in {**counts, **found} if _share(found, name) != _share(counts, name))
        allowed = f"comparable: {_share(found, name):.1%} of its images are of {name}, here {_share(counts, name):.1%}"
        raise OutputError(bad("against", out, allowed))


def compare_with(out: str, other: AuditResult, result: AuditResult) -> Against:
    """What is comparable of an audit that passed ``check_against``."""
    run, entries = other.provenance, other.metrics
    equal = class_counts(other) == class_counts(result) and run.measured == result.provenance.measured
    same_tail = tail_sha256(other) == tail_sha256(result)
    values = comparable({name: entry.value for name, entry in entries.items()}, equal, same_tail)
    intervals = {name: found for name in values if (found := entries[name].interval) is not None}
    return Against(run.run, out, run.measured, values, intervals)


def is_plain(result: AuditResult) -> bool:
    """Whether the audited run neither guides nor chooses images."""
    run = result.provenance
    return not run.guidance and not any(name in tomllib.loads(run.manifest) for name in NOT_PLAIN)


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
    values = comparable(against.metrics, bool(equal), best.tail_sha256 == tail_sha256(result))
    intervals = {name: found for name, found in against.intervals.items() if name in values}
    return dataclasses.replace(against, metrics=values, intervals=intervals)


def stored_plain() -> list[PlainSampling]:
    """The numbers that ship with the models."""
    tables = [json.loads(path.read_bytes()) for path in sorted(LIBRARY.glob(f"*/{STORED}"))]
    return [PlainSampling(**row) for table in tables if table["format"] == FORMAT for row in table["rows"]]


def shared_of(provenance: Provenance) -> dict[str, object]:
    """What two audits must share to be compared."""
    return {name: getattr(provenance, name) for name in SHARED}


def named_counts(manifest: Manifest) -> dict[str, int]:
    """Planned images of the data set by class name."""
    return {manifest.preset.class_name(class_id): count for class_id, count in manifest.counts.items()}


def class_counts(result: AuditResult) -> dict[str, int]:
    """Planned images by class name: an incomplete run has other proportions by chance."""
    return {row.class_name: row.planned for row in result.per_class}


def tail_sha256(result: AuditResult) -> str | None:
    """Identifies the real images of the tail."""
    return None if result.tail is None else result.tail.sha256


def comparable(metrics: Mapping[str, float], equal_counts: bool, same_tail: bool) -> dict[str, float]:
    """The metrics that may be compared with those of a set of another size, or of the same size, by name."""
    left_out = OF_TRAINING if same_tail else OF_TRAINING | OF_TAIL
    return {
        name: value
        for name, value in metrics.items()
        if (kind := metric_kind(name)) not in left_out and (equal_counts or kind in OF_ANY_COUNT)
    }


def proportional(first: Mapping[str, int], second: Mapping[str, int]) -> bool:
    """Whether two sets have the same classes in the same proportions."""
    totals = sum(first.values()), sum(second.values())
    return all(first.get(name, 0) * totals[1] == second.get(name, 0) * totals[0] for name in {*first, *second})


def _share(counts: Mapping[str, int], name: str) -> float:
    return counts.get(name, 0) / max(1, sum(counts.values()))


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
