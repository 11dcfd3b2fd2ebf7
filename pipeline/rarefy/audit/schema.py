"""What the audit writes to OUT/audit: the paths of its files, and the content of metrics.json as dataclasses.

metrics.json is an ``AuditResult``: one key per field. samples.parquet has one row per measured image, copies.parquet
the suspected copies with their images, bootstrap.parquet the resamples of every metric (see tables.py for their
columns), and strips.parquet the images that the page shows of each class (see strips.py). report.html is made of
these.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from rarefy.audit.inputs.dataset import Problem
from rarefy.audit.metrics.summary import Histogram
from rarefy.errors import ShardError
from rarefy.gates import GateCheck
from rarefy.shards.store import Store

FORMAT = "rarefy-audit-v3"
METRICS_PATH = "audit/metrics.json"
SAMPLES_PATH = "audit/samples.parquet"
STRIPS_PATH = "audit/strips.parquet"
COPIES_PATH = "audit/copies.parquet"
BOOTSTRAP_PATH = "audit/bootstrap.parquet"
REPORT_PATH = "audit/report.html"
GALLERY_PATH = "audit/gallery.html"


@dataclass(frozen=True)
class MetricEntry:
    """A metric of the generated images, with its real baseline in ``floor``.

    floor: the same metric for held-out real images, as many per class as were measured, against the same real images;
    intervals: 95% by bootstrap, None where undefined; interval_over: what was resampled; k: None if the metric uses no
    neighbours; std, floor_std: over KID's subsets, for KID only; sample_count: images scored, for LOF only;
    floor_draws: number of disjoint draws of held-out images whose mean is ``floor``; floor_spread: their standard
    deviation, None for one draw.
    """

    value: float
    interval: list[float] | None
    interval_over: str | None
    floor: float | None
    floor_interval: list[float] | None
    better: str
    extractor: str
    layer: str
    k: int | None
    generated_count: int
    real_count: int
    floor_count: int
    std: float | None = None
    floor_std: float | None = None
    sample_count: int | None = None
    floor_draws: int | None = None
    floor_spread: float | None = None


@dataclass
class ClassRow:
    """One planned class. Values that need images are None if it has none.

    on_class_rate, precision, recall, tail_recall, coverage: fractions with 95% intervals; rarity: mean over the images
    within the real data; acceptance_rate: accepted / drawn, None
    without a filter; *_w1: Wasserstein-1 distance to the values of the real images; reference_*: values of the real
    images, which need the classifier's weights; utility: accuracy that the probe gains on this class when the generated
    images are added, utility_real: its accuracy with the real ones alone; *_floor: the real baseline. Columns without
    values are not written.
    """

    class_id: int
    class_name: str
    planned: int
    count: int
    on_class_rate: float | None
    on_class_rate_interval: list[float] | None
    confidence: float | None
    entropy: float | None
    acceptance_rate: float | None
    confidence_w1: float | None = None
    entropy_w1: float | None = None
    reference_on_class_rate: float | None = None
    reference_confidence: float | None = None
    reference_entropy: float | None = None
    precision: float | None = None
    precision_interval: list[float] | None = None
    precision_floor: float | None = None
    recall: float | None = None
    recall_interval: list[float] | None = None
    recall_floor: float | None = None
    coverage: float | None = None
    coverage_interval: list[float] | None = None
    coverage_floor: float | None = None
    tail_recall: float | None = None
    tail_recall_interval: list[float] | None = None
    tail_recall_floor: float | None = None
    rarity: float | None = None
    rarity_floor: float | None = None
    copies: float | None = None
    vendi: float | None = None
    vendi_floor: float | None = None
    utility: float | None = None
    utility_interval: list[float] | None = None
    utility_real: float | None = None


CLASS_FIELDS = tuple(field.name for field in dataclasses.fields(ClassRow))
OPTIONAL_METRIC_FIELDS = ("std", "floor_std", "sample_count", "floor_draws", "floor_spread")
OPTIONAL_CLASS_FIELDS = CLASS_FIELDS[CLASS_FIELDS.index("reference_on_class_rate") :]


@dataclass(frozen=True)
class TailSummary:
    """The real images of the tail; share: fraction of the reference; sha256: identifies the set."""

    rule: str
    share: float
    count: int
    sha256: str


@dataclass(frozen=True)
class SuspectedCopy:
    """kind: training, reference or held-out (other: key of that real image), exact or near (other: key of the twin).

    distance: root mean square difference in grey levels after the best flip, shift, brightness and contrast; ratio: the
    distance over the largest that counts as a copy.
    """

    key: str
    class_id: int
    kind: str
    distance: float
    ratio: float
    other: str


@dataclass(frozen=True)
class FeatureMap:
    """explained: variance ratios of both axes; generated: [x, y, class_id, key]; real: [x, y, class_id]."""

    method: str
    explained: list[float]
    generated: list[list[Any]]
    real: list[list[Any]]


@dataclass(frozen=True)
class Memorization:
    """What images were searched for copies of. source: human-readable; count: number of images; sha256: of them.

    whole: they are the model's whole training set.
    """

    source: str
    count: int
    sha256: str
    whole: bool


@dataclass(frozen=True)
class Training:
    """One classifier of the utility measurement, trained on real images, made ones or both, tested on real ones.

    data: real, generated or both; ratio: generated images over real ones, for both only; accuracy, tail_accuracy: of
    the probe trained on all images, or the mean over the network's seeds, with 95% intervals (docs/AUDIT.md says what
    they cover); per_class, per_class_interval: accuracy by class name.
    """

    data: str
    ratio: float | None
    images: int
    accuracy: float
    accuracy_interval: list[float]
    tail_accuracy: float
    tail_accuracy_interval: list[float]
    per_class: dict[str, float]
    per_class_interval: dict[str, list[float]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Utility:
    """What the made images add to real ones in training. classifier: ``probe`` (on the features) or ``network``.

    source: the real training images, and which ratios there are too few generated images for; train_count, test_count:
    numbers of real images; seeds: repetitions.
    """

    classifier: str
    source: str
    train_count: int
    test_count: int
    seeds: int
    trainings: list[Training]


@dataclass(frozen=True)
class Against:
    """Plain sampling from the same model, to compare with. metrics, intervals (95%, where known): by metric name."""

    run: str
    source: str
    images: int
    metrics: dict[str, float]
    intervals: dict[str, list[float]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Reason:
    """One metric's part in the verdict. level, best, worst: close, usable, far or none.

    level: by the value; best, worst: by the ends of its 95% interval; extractor: None for the classifier's metrics and
    for the main extractor's; text: value, interval, real baseline and limits.
    """

    metric: str
    extractor: str | None
    level: str
    best: str
    worst: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The answer to "can I train on this?". level: close, usable, far or none; headline: one sentence.

    lines: what the set reaches, in sentences; reasons: worst first.
    """

    level: str
    headline: str
    lines: list[str]
    reasons: list[Reason]


@dataclass(frozen=True)
class Provenance:
    """What was measured and with what; counts are numbers of images. classifier_sha256: None without a classifier.

    filled: images that are not acceptable to the manifest's [select]; excluded: images on the exclusion list, which
    were measured with the others; shards_sha256: identifies the shards that were audited (rarefy.audit.current), None
    in files of earlier versions.
    """

    run: str
    manifest_digest: str
    preset: str
    sealed: bool
    planned: int
    committed: int
    measured: int
    not_accepted: int
    checkpoint_sha256: str
    classifier_sha256: str | None
    guidance: list[str]
    precision: str
    fast_errors: dict[str, Any] | None
    sampler: str
    reference: str | None
    reference_count: int
    reference_resized: int
    reference_sha256: str | None
    manifest: str
    versions: dict[str, str]
    created_at: str
    extractor: str
    extractor_layer: str
    extractor_sha256: str
    preprocessing: str
    k: int
    device: str
    duration_s: float
    shards_sha256: str | None = None
    filled: int = 0
    excluded: int = 0


@dataclass(frozen=True)
class AuditResult:
    """The content of metrics.json.

    verdict: of the gates: "passed", "failed" or "no gates", where advisory gates do not count; judgement: the verdict
    by comparison with real images; partial: there are problems, so the numbers describe only a part;
    metrics: by name; without a reference only on_class_rate, and that only with a classifier; tail, map: None
    without a reference; copies: at most 24; memorization: None without a reference; utility: one entry per kind of
    classifier; against: plain sampling's numbers, where known; other_extractors: metrics of further ones.
    """

    format: str
    verdict: str
    gates: list[GateCheck]
    partial: bool
    problems: list[Problem]
    metrics: dict[str, MetricEntry]
    tail: TailSummary | None
    histograms: dict[str, Histogram]
    per_class: list[ClassRow]
    copies: list[SuspectedCopy]
    map: FeatureMap | None
    provenance: Provenance
    memorization: Memorization | None = None
    utility: list[Utility] = dataclasses.field(default_factory=list)
    against: Against | None = None
    other_extractors: dict[str, dict[str, MetricEntry]] = dataclasses.field(default_factory=dict)
    judgement: Verdict | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values, without optional keys that are None."""
        content = dataclasses.asdict(self)
        absent = {name for name in OPTIONAL_CLASS_FIELDS if all(getattr(row, name) is None for row in self.per_class)}
        content["per_class"] = [
            {name: value for name, value in row.items() if name not in absent} for row in content["per_class"]
        ]
        for entries in (content["metrics"], *content["other_extractors"].values()):
            for entry in entries.values():
                for name in OPTIONAL_METRIC_FIELDS:
                    if entry[name] is None:
                        del entry[name]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> AuditResult:
        """The inverse of ``to_json``. Raises KeyError or TypeError for other keys."""
        typed = {
            "gates": [GateCheck(**row) for row in content["gates"]],
            "problems": [Problem(**row) for row in content["problems"]],
            "metrics": _entries(content["metrics"]),
            "tail": TailSummary(**content["tail"]) if content["tail"] else None,
            "histograms": {name: Histogram(**table) for name, table in content["histograms"].items()},
            "per_class": [ClassRow(**row) for row in content["per_class"]],
            "copies": [SuspectedCopy(**row) for row in content["copies"]],
            "map": FeatureMap(**content["map"]) if content["map"] else None,
            "provenance": Provenance(**content["provenance"]),
            "memorization": Memorization(**content["memorization"]) if content.get("memorization") else None,
            "utility": [_utility(row) for row in content.get("utility", [])],
            "against": Against(**content["against"]) if content.get("against") else None,
            "other_extractors": {name: _entries(rows) for name, rows in content.get("other_extractors", {}).items()},
            "judgement": _verdict(content["judgement"]) if content.get("judgement") else None,
        }
        return cls(**(content | typed))


def _entries(rows: dict[str, Any]) -> dict[str, MetricEntry]:
    return {name: MetricEntry(**entry) for name, entry in rows.items()}


def _utility(row: dict[str, Any]) -> Utility:
    return Utility(**(row | {"trainings": [Training(**each) for each in row["trainings"]]}))


def _verdict(row: dict[str, Any]) -> Verdict:
    return Verdict(**(row | {"reasons": [Reason(**each) for each in row["reasons"]]}))


def read_result(store: Store) -> AuditResult:
    """Read OUT/audit/metrics.json. Raises OutputError if there is none, ShardError for another format."""
    data, place = store.read_bytes(METRICS_PATH), f"{store.root}/{METRICS_PATH}"
    try:
        content = json.loads(data)
        if isinstance(content, dict) and content.get("format") == FORMAT:
            return AuditResult.from_json(content)
    except ValueError as error:
        raise ShardError(f"{place}: not JSON ({error}); run audit again") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ShardError(f"{place}: not of the format {FORMAT} ({error}); run audit again") from error
    raise ShardError(f"{place}: not of the format {FORMAT}; run audit again")
