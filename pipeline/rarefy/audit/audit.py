"""The audit of a run: reads OUT's shards, compares them with real images, writes OUT/audit.

OUT/audit/metrics.json holds

    format      "rarefy-audit-v2"
    metrics     {name: {value, interval, interval_over, floor, floor_interval, better, extractor, layer, k,
                generated_count, real_count, floor_count}}
                floor: the same metric of held-out real images, as many a class as were measured, against the same
                real images; interval: 95% by bootstrap (see bootstrap.py), null where none is defined, interval_over:
                what was drawn again; k is null where no neighbours are used; KID also has std and floor_std, LOF
                sample_count. Names: fid_EXTRACTOR, kid_EXTRACTOR, inception_score (where the extractor has logits),
                precision, recall, tail_recall, density, coverage, tail_coverage, rarity, outside, avg_knn, nearest,
                lof, duplicates, copies, and on_class_rate (over all samples; its floor is the classifier's accuracy
                on the real images). Without a reference only on_class_rate.
    tail        {rule, share, count, sha256 of the membership} of the real images of the tail; null without a reference
    histograms  {confidence, entropy, rarity: {unit, edges, generated, reference, generated_mean, reference_mean}};
                shares of the samples a bin; rarity: of images inside the real data, its reference the floor's images
    per_class   [{class_id, class_name, planned, count, on_class_rate, confidence, entropy, acceptance_rate,
                confidence_w1, entropy_w1, reference_*, precision, recall, recall_floor, coverage, coverage_floor}];
                null where a class has no image; *_w1: Wasserstein-1 distance to the real images' values;
                acceptance_rate: accepted / drawn, null without a filter; on_class_rate, precision, recall and coverage
                have a NAME_interval beside them, 95% by bootstrap over the rows that each averages over
    copies      [{key, class_id, kind, distance, ratio, other}], at most 24; kind: reference or held-out (other: key of
                the real image of that part), exact or near (other: key of the twin)
    map         {method: "pca", explained, generated: [[x, y, class_id, key]], real: [[x, y, class_id]]} or null
    gates       [{metric, scope, bound, limit, value, passed}]; verdict: "passed", "failed" or "no gates"
    problems    [{where, what}] that were met and left out; partial: there are any, the audit is of a part
    provenance  manifest (name, digest, text), weights' hashes, counts, extractor, reference, versions, duration

OUT/audit/samples.parquet has one row a measured image, rarest.parquet the rarest images a class on both sides,
copies.parquet the suspected copies' images, bootstrap.parquet the resamples of every metric.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from rarefy.audit.features.extractors import DEFAULT_BATCH, DEFAULT_EXTRACTOR, load_extractor, resolve_device
from rarefy.audit.inputs.dataset import read_run
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.inputs.scores import score_reference
from rarefy.audit.measure import Progress, Setting, measure
from rarefy.audit.metrics.comparison import DEFAULT_K
from rarefy.audit.page.tables import write_bootstrap, write_copies, write_rarest, write_samples
from rarefy.audit.result import build_result
from rarefy.audit.schema import FORMAT, METRICS_PATH
from rarefy.errors import ManifestError, bad
from rarefy.gates import Gate
from rarefy.shards.store import Store

__all__ = ["FORMAT", "METRICS_PATH", "AuditOptions", "Progress", "run_audit"]


@dataclass(frozen=True)
class AuditOptions:
    """What to measure with, and where. None of it changes a data set.

    reference: a folder of real images (default: the preset's embedded ones). limit: images measured at most; the
    embedded floor has 10,000, and more images than the floor has would not be comparable with it. tail: ``avgknn``,
    ``confidence`` or the path of a list of real images. ray_address: a cluster for the features. gates: in place of
    those of the run's own manifest.
    """

    extractor: str = DEFAULT_EXTRACTOR
    k: int = DEFAULT_K
    extractor_weights: str | None = None
    batch: int = DEFAULT_BATCH
    device: str = "cpu"
    reference: str | None = None
    limit: int = 10_000
    tail: str = "avgknn"
    ray_address: str | None = None
    gates: tuple[Gate, ...] | None = None


def run_audit(store: Store, options: AuditOptions, progress: Progress) -> dict[str, Any]:
    """Measure the run in ``store``, write OUT/audit, return the content of metrics.json.

    progress(stage, done, total) is called as work goes on. Raises OutputError or ShardError for a folder without a
    readable run, ManifestError, DataError, CheckpointError or DeviceError for options that cannot be met. Damage to
    parts of the run is no error but ``problems`` of the result.
    """
    started = time.monotonic()
    if options.limit < 1:
        raise ManifestError(bad("limit", options.limit, "at least 1"))
    resolve_device(options.device)
    extractor = load_extractor(options.extractor, options.extractor_weights)
    progress("reading shards", 0, 1)
    run = read_run(store, options.limit)
    reference = load_reference(run.manifest.preset, options.reference)
    scores, measured = None, None
    if reference is not None:
        scores = score_reference(run.manifest, reference.real, options.device, options.batch, progress)
        setting = Setting(extractor, options.k, options.batch, options.device, options.tail, options.ray_address)
        measured = measure(run, reference, None if scores is None else scores.confidence, setting, progress)
        run = measured.run
    gates = run.manifest.gates if options.gates is None else options.gates
    result, estimates = build_result(run, reference, scores, measured, gates)
    result["provenance"] |= {
        "extractor": extractor.name,
        "extractor_layer": extractor.layer,
        "extractor_sha256": extractor.digest,
        "preprocessing": extractor.preprocessing,
        "k": options.k,
        "device": options.device,
        "duration_s": round(time.monotonic() - started, 1),
    }
    write_samples(store, run.measured, run.manifest.preset, measured)
    write_bootstrap(store, estimates)
    if measured is not None:
        write_rarest(store, measured)
        write_copies(store, measured)
    store.write_bytes(METRICS_PATH, json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
    return result
