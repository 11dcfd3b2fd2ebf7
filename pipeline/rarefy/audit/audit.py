"""The audit of a run: read OUT's shards, compare them with real images, write OUT/audit (see schema.py)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rarefy.audit.features.extractors import DEFAULT_EXTRACTOR, load_extractor
from rarefy.audit.features.scores import judge_images, score_reference
from rarefy.audit.inputs.dataset import read_run
from rarefy.audit.inputs.model import allow_networks, find_run_model
from rarefy.audit.inputs.reference import load_reference
from rarefy.audit.measure import Progress, Setting, check_enough, measure
from rarefy.audit.metrics.assembly import DEFAULT_K
from rarefy.audit.result import build_result
from rarefy.audit.schema import COPIES_PATH, METRICS_PATH, RAREST_PATH
from rarefy.audit.tables import write_bootstrap, write_copies, write_rarest, write_samples
from rarefy.device import find_device
from rarefy.errors import ManifestError, bad
from rarefy.gates import Gate, check_measurable
from rarefy.manifest import Manifest
from rarefy.shards.store import Store


@dataclass(frozen=True)
class AuditOptions:
    """What to measure with, and where. None of it changes the data set.

    reference: a folder of real images (default: the model's own). limit: the maximum number of images measured; the
    embedded models hold out 10,000, and a larger set would have no real baseline of its size. tail: ``avgknn``,
    ``confidence`` or the path of a list of real images. ray_address: a cluster for the features. gates: used instead
    of the manifest's. model: where the run's model folder is now, if it has moved. allow_plugins: import networks of
    your own that the run's model names; without it, the real images are not scored by them.
    """

    extractor: str = DEFAULT_EXTRACTOR
    k: int = DEFAULT_K
    extractor_weights: str | None = None
    device: str = "cpu"
    reference: str | None = None
    limit: int = 10_000
    tail: str = "avgknn"
    ray_address: str | None = None
    gates: tuple[Gate, ...] | None = None
    model: str | None = None
    allow_plugins: bool = False


def run_audit(store: Store, options: AuditOptions, progress: Progress) -> dict[str, Any]:
    """Measure the run in ``store``, write OUT/audit, return the content of metrics.json.

    progress(stage, done, total) is called as work goes on. Raises OutputError or ShardError for a folder without a
    readable run; ManifestError, DataError, CheckpointError or DeviceError for options that do not work. Damaged parts
    of a run raise nothing: they are ``problems`` of the result.
    """
    if options.limit < 1:
        raise ManifestError(bad("limit", options.limit, "at least 1"))
    find_device(options.device)
    started = time.monotonic()
    extractor = load_extractor(options.extractor, options.extractor_weights)
    setting = Setting(extractor, options.k, options.device, options.tail, options.ray_address, started)
    progress("reading shards", 0, 1)
    run = read_run(store, options.limit)
    store.check_writable()  # not earlier: it would make a folder of a mistyped name
    gates = run.manifest.gates if options.gates is None else options.gates
    if not run.scored:
        _check_without_classifier(gates, options.tail)
    needed = options.reference is None and "reference" in run.manifest.preset.files
    model = allow_networks(find_run_model(run.manifest.model, options.model, needed), options.allow_plugins)
    run = replace(run, manifest=replace(run.manifest, model=model))
    run = replace(run, judged=judge_images(run.manifest, run.images, options.device, progress))
    reference = load_reference(run.manifest.preset, options.reference)
    scores, measured = None, None
    if reference is not None:
        scores = score_reference(run.manifest, reference.real, options.device, progress)
        measured = measure(run, reference, None if scores is None else scores.confidence, setting, progress)
        run = measured.run
    result, estimates = build_result(run, reference, scores, measured, gates, setting)
    write_samples(store, run.measured, run.manifest.preset, measured)
    write_bootstrap(store, estimates)
    if measured is not None:
        write_rarest(store, measured)
        write_copies(store, measured)
    else:  # those of an earlier audit, which had real images
        store.delete(RAREST_PATH)
        store.delete(COPIES_PATH)
    content = result.to_json()
    store.write_bytes(METRICS_PATH, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
    return content


def check_before(manifest: Manifest, options: AuditOptions) -> None:
    """Raise, before a run is made, what its audit would raise in the end for want of images. Raises DataError."""
    reference = load_reference(manifest.preset, options.reference)
    if reference is not None:
        held_out = Counter(reference.held_out.labels.tolist())
        check_enough(sum(min(count, held_out[class_id]) for class_id, count in manifest.counts.items()), options.k)


def _check_without_classifier(gates: Iterable[Gate], tail: str) -> None:
    check_measurable(gates)
    if tail == "confidence":
        raise ManifestError(
            bad("tail", tail, "possible for a model without a classifier: use avgknn or a file of keys")
        )
