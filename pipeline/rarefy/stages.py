"""Sealing and verifying a run's folder, and ``rarefy run``, which chains all stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rarefy.audit.audit import AuditOptions, run_audit
from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.page.report import write_report
from rarefy.errors import OutputError, ShardError, bad
from rarefy.generate.driver import GenerateOptions, GenerateResult, generate
from rarefy.generate.events import EventSink
from rarefy.generate.progress import ProgressSink
from rarefy.manifest import Manifest
from rarefy.plan import shard_name, shard_names
from rarefy.shards.card import CardInfo
from rarefy.shards.claim import MANIFEST_FILE, claim_output
from rarefy.shards.index import Sealed, seal
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store
from rarefy.shards.verify import verify

StageProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class RunResult:
    """The result of ``rarefy run``. report: the page's path, relative to OUT."""

    generated: GenerateResult
    sealed: Sealed
    metrics: dict[str, Any]
    report: str


def run(
    manifest: Manifest,
    options: GenerateOptions,
    progress: ProgressSink,
    stage: StageProgress,
    listeners: Sequence[EventSink] = (),
) -> RunResult:
    """Generate, seal, audit, report. If seal reports missing or damaged shards, they are generated again, once."""
    store = Store(options.out)
    generated = generate(manifest, options, progress, listeners)
    try:
        sealed = seal_run(store)
    except ShardError:
        generated = generate(manifest, options, progress, listeners)
        sealed = seal_run(store)
    device = "cuda" if options.gpus_per_actor and options.ray_address is None else "cpu"
    # A resumed run keeps the manifest of its first session, but the gates may have changed since.
    metrics = run_audit(store, AuditOptions(device=device, gates=manifest.gates), stage)
    return RunResult(generated, sealed, metrics, write_report(store))


def seal_run(store: Store) -> Sealed:
    """Verify and seal the run in ``store``. Raises ShardError naming missing or damaged shards."""
    manifest = _own_manifest(store)
    names = list(shard_names(manifest))
    return seal(store, manifest.text, manifest.digest, names, manifest.counts, _card(store, manifest))


def verify_run(store: Store) -> dict[str, list[str]]:
    """Problems by shard name; empty if every shard of the plan is present and undamaged."""
    manifest = _own_manifest(store)
    return verify(store, list(shard_names(manifest)), manifest.digest)


def _own_manifest(store: Store) -> Manifest:
    if not store.exists(MANIFEST_FILE):
        raise OutputError(bad("out", store.root, "a rarefy run: it has no manifest.toml"))
    manifest = read_manifest(store)
    claim_output(store, manifest.text, manifest.digest)
    return manifest


def _card(store: Store, manifest: Manifest) -> CardInfo:
    try:
        record = read_records(store, shard_name(manifest.prefix, 0))[0]
        weights: tuple[str, str | None] = record.checkpoint_sha256, record.classifier_sha256
    except (ShardError, OutputError):
        weights = "unknown", "unknown"  # seal will refuse this run: its first shard is missing or damaged
    settings, preset = manifest.settings, manifest.preset
    eta = "" if settings.method == "ancestral" else f", eta {settings.eta:g}"
    start = "" if settings.start is None else f", from step {settings.start}"
    every = "" if settings.classifier_every == 1 else f", classifier every {settings.classifier_every} steps"
    return CardInfo(
        name=manifest.name,
        preset=preset.name,
        image_size=preset.image_size,
        channels=preset.channels,
        class_names=preset.labels,
        guidance=tuple(term.name for term in manifest.terms),
        sampler=f"{settings.method}, steps {settings.steps}{start}{eta}{every}, {manifest.precision}, "
        f"batch {manifest.batch}",
        checkpoint_sha256=weights[0],
        classifier_sha256=weights[1],
    )
