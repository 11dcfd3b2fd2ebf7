"""The audit of a run: read OUT's shards, compare them with real images, write OUT/audit (see schema.py)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rarefy.audit.against import (
    check_against,
    compare_with,
    named_counts,
    read_against,
    stored_against,
    stored_plain,
)
from rarefy.audit.card import write_audit
from rarefy.audit.current import discard_audit, shards_sha256
from rarefy.audit.features.extractors import DEFAULT_EXTRACTOR, load_extractor
from rarefy.audit.features.scores import judge_images, score_reference
from rarefy.audit.inputs.dataset import Problem, RunData, read_run
from rarefy.audit.inputs.model import allow_networks, find_run_model
from rarefy.audit.inputs.reference import Reference, load_reference
from rarefy.audit.inputs.training import load_training
from rarefy.audit.measure import Compared, Measured, compare, measure
from rarefy.audit.metrics.assembly import DEFAULT_K
from rarefy.audit.metrics.bootstrap import Estimate
from rarefy.audit.metrics.tail import check_tail
from rarefy.audit.rarity.compute import Means, RealSide, write_rarity
from rarefy.audit.result import build_result
from rarefy.audit.schema import METRICS_PATH, AuditResult
from rarefy.audit.sheet import contact_sheet
from rarefy.audit.sides import Progress, Setting, check_enough
from rarefy.audit.strips import write_strips
from rarefy.audit.tables import write_bootstrap, write_copies, write_samples
from rarefy.audit.verdict import judge
from rarefy.device import find_device
from rarefy.errors import DataError, ManifestError, ShardError, bad, near_path
from rarefy.gates import Gate, check_measurable
from rarefy.manifest import Manifest
from rarefy.plan import shard_names
from rarefy.shards.listing import iter_committed
from rarefy.shards.metadata import tar_path
from rarefy.shards.store import Store


@dataclass(frozen=True)
class AuditOptions:
    """What to measure with, and where. None of it changes the data set.

    reference: a folder of real images (default: the model's own). training: the images that the model was trained on
    (default: those that its folder names). limit: the maximum number of images measured; the
    embedded models hold out 10,000, and a larger set would have no real baseline of its size. tail: ``avgknn``,
    ``confidence`` or the path of a list of real images. ray_address: a cluster for the features. gates: used instead
    of the manifest's. model: where the run's model folder is now, if it has moved. allow_plugins: import networks of
    your own that the run's model names; without it, the real images are not scored by them. against: the folder of an
    audited run of plain sampling to compare with (default: the numbers that ship with the model, if there are any).
    further_extractors: others to measure with, too, as (name, weights file or None). utility: also train a small
    network on pixels.
    """

    extractor: str = DEFAULT_EXTRACTOR
    k: int = DEFAULT_K
    extractor_weights: str | None = None
    device: str = "cpu"
    reference: str | None = None
    training: str | None = None
    limit: int = 10_000
    tail: str = "avgknn"
    ray_address: str | None = None
    gates: tuple[Gate, ...] | None = None
    model: str | None = None
    allow_plugins: bool = False
    against: str | None = None
    further_extractors: tuple[tuple[str, str | None], ...] = ()
    utility: bool = False


def run_audit(store: Store, options: AuditOptions, progress: Progress) -> dict[str, Any]:
    """Measure the run in ``store``, write OUT/audit, return the content of metrics.json.

    progress(stage, done, total) is called as work goes on. Raises OutputError or ShardError for a folder without a
    readable run; ManifestError, DataError, CheckpointError or DeviceError for options that do not work. Damaged parts
    of a run raise nothing: they are ``problems`` of the result. An earlier audit is deleted before measuring starts.
    """
    _check_options(options)
    setting, *further = _settings(options, time.monotonic())
    other = None if options.against is None else read_against(options.against, store)
    progress("reading shards", 0, 1)
    audited, run = _read(store, options.limit)
    store.check_writable()  # not earlier: it would make a folder of a mistyped name
    gates = run.manifest.gates if options.gates is None else options.gates
    _check_possible(run.manifest, gates, options, (setting, *further))
    needed = options.reference is None and "reference" in run.manifest.preset.files
    model = allow_networks(find_run_model(run.manifest.model, options.model, needed), options.allow_plugins)
    run = replace(run, manifest=replace(run.manifest, model=model))
    run = replace(run, judged=judge_images(run.manifest, run.images, options.device, progress))
    reference = load_reference(run.manifest.preset, options.reference)
    _check_real_images(reference, options)
    training = None if reference is None else load_training(run, options.training, progress)
    reference = None if reference is None else reference.of_classes(run.manifest.counts)
    if other is not None and options.against is not None:
        weights = dict(zip(("checkpoint_sha256", "classifier_sha256"), run.weights, strict=True))
        shared = _shared(run.manifest, reference, setting) | weights
        check_against(options.against, other, shared, named_counts(run.manifest))
    scores, measured, others, confidence = None, None, list[Compared](), None
    if reference is not None:
        scores = score_reference(run.manifest, reference.real, options.device, progress)
        confidence = None if scores is None else scores.confidence
        check_tail(options.tail, confidence, reference.real.keys, reference.other_keys)
    discard_audit(store)  # from here on, an audit that fails leaves none behind
    if reference is not None:
        measured = measure(run, reference, training, confidence, setting, progress)
        others = [compare(run, reference, confidence, each, progress) for each in further]
        problems = _write_rarity(store, run, reference, measured, setting, progress)
        run = replace(measured.run, problems=(*measured.run.problems, *problems))
    result, estimates = build_result(run, reference, scores, measured, gates, setting, others)
    result = replace(result, provenance=replace(result.provenance, shards_sha256=audited))
    if other is not None and options.against is not None:
        result = replace(result, against=compare_with(options.against, other, result))
    elif run.manifest.terms or run.manifest.select is not None:
        result = replace(result, against=stored_against(result, stored_plain()))
    return _write(store, run, measured, replace(result, judgement=judge(result)), estimates)


def _check_options(options: AuditOptions) -> None:
    for name, value in (("k", options.k), ("limit", options.limit)):
        if value < 1:
            raise ManifestError(bad(name, value, "at least 1"))
    find_device(options.device)


def _read(store: Store, limit: int) -> tuple[str, RunData]:
    """What identifies the shards, and the run. An earlier audit goes with shards that cannot be read any more."""
    try:
        return shards_sha256(store), read_run(store, limit)
    except ShardError:
        discard_audit(store)
        raise


def _check_possible(
    manifest: Manifest, gates: Iterable[Gate], options: AuditOptions, settings: Iterable[Setting]
) -> None:
    """Raise ManifestError for what this run's model cannot be measured with."""
    preset = manifest.preset
    for each in settings:
        each.extractor.check_side(preset.image_size)
    if options.utility and not preset.knows_classes:
        raise ManifestError(bad("utility", preset.name, "possible for: this model knows no classes"))
    if preset.classifier is None:
        _check_without_classifier(gates, options.tail)


def _check_real_images(reference: Reference | None, options: AuditOptions) -> None:
    """Raise ManifestError for what cannot be measured without real images, DataError for training images not there."""
    if reference is None and options.utility:
        raise ManifestError(bad("utility", "no real images", "possible: give --reference"))
    if reference is None and options.training is not None:
        raise ManifestError(bad("training", options.training, "usable without other real images: give --reference too"))
    if options.training is not None and not Path(options.training).exists():
        raise DataError(
            bad("training", options.training, f"a file or folder that is there{near_path(options.training)}")
        )


def _write(
    store: Store, run: RunData, measured: Measured | None, result: AuditResult, estimates: Mapping[str, Estimate]
) -> dict[str, Any]:
    """Write OUT/audit, metrics.json last, and the card's section; return the content of metrics.json."""
    picture = None
    write_samples(store, run.measured, run.manifest.preset, measured)
    write_bootstrap(store, estimates)
    if measured is not None:
        picture = contact_sheet(write_strips(store, measured))
        write_copies(store, measured)
    content = result.to_json()
    store.write_bytes(METRICS_PATH, json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")
    write_audit(store, result, picture)
    return content


def _shared(manifest: Manifest, reference: Reference | None, setting: Setting) -> dict[str, object]:
    """What this audit must share with another one that it is compared with."""
    extractor = setting.extractor
    return {
        "sampler": manifest.settings.text(),
        "precision": manifest.precision,
        "reference_sha256": None if reference is None else reference.real.sha256(),
        "extractor_sha256": extractor.digest,
        "extractor_layer": extractor.layer,
        "preprocessing": extractor.preprocessing,
        "k": setting.k,
    }


def _settings(options: AuditOptions, started: float) -> list[Setting]:
    """One per extractor, the main one first. Raises ManifestError for an extractor that was given twice."""
    named = [(options.extractor, options.extractor_weights), *options.further_extractors]
    names = [name for name, _ in named]
    for name in names:
        if names.count(name) > 1:
            raise ManifestError(f"extractor: {name!r} was given twice; name each extractor once")
    how = options.k, options.device, options.tail, options.ray_address, started, options.utility
    return [Setting(load_extractor(*each), *how) for each in named]


def _write_rarity(
    store: Store, run: RunData, reference: Reference, measured: Measured, setting: Setting, progress: Progress
) -> list[Problem]:
    """Write OUT/rarity for every image that the run has sampled, except for shards that are problems already.

    That of a run whose [select] depends on it stays as it is, whatever this audit measures with.
    """
    manifest = run.manifest
    if manifest.select is not None and manifest.select.needs_real_images:
        return []
    named = {problem.where.split()[0] for problem in run.problems}
    committed = iter_committed(store, shard_names(manifest), manifest.digest)
    markers = (marker for marker in committed if tar_path(marker.name) not in named)
    real = RealSide(reference.real, reference.real.sha256(), lambda: measured.sides.real.manifold)
    means = Means(setting.extractor, setting.k, setting.device, setting.ray_address)
    return write_rarity(store, markers, sum(manifest.pool.values()), real, means, progress)


def check_before(store: Store, manifest: Manifest, options: AuditOptions) -> None:
    """Raise, before a run is made, what its audit would raise in the end.

    A device that is not there (DeviceError), too few real images and training images that are not there (DataError),
    what the model cannot be measured with (ManifestError), and a run to compare with that is not comparable
    (OutputError or ShardError).
    """
    _check_options(options)
    setting, *further = _settings(options, time.monotonic())
    _check_possible(manifest, options.gates or (), options, (setting, *further))
    reference = load_reference(manifest.preset, options.reference)
    _check_real_images(reference, options)
    if options.against is not None:
        other = read_against(options.against, store)
        compared = None if reference is None else reference.of_classes(manifest.counts)
        shared = _shared(manifest, compared, setting)
        check_against(options.against, other, shared, named_counts(manifest))
    if reference is not None:
        held_out = Counter(reference.held_out.labels.tolist())
        check_enough(sum(min(count, held_out[class_id]) for class_id, count in manifest.counts.items()), options.k)


def _check_without_classifier(gates: Iterable[Gate], tail: str) -> None:
    check_measurable(gates)
    if tail == "confidence":
        raise ManifestError(
            bad("tail", tail, "possible for a model without a classifier: use avgknn or a file of keys")
        )
