"""Sealing and verifying a run's folder, and ``rarefy run``, which chains all stages.

The stages of ``rarefy run`` are imported there, because seal and verify need neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rarefy.audit.inputs.dataset import read_manifest
from rarefy.errors import OutputError, ShardError, bad
from rarefy.manifest import Manifest
from rarefy.plan import run_spec
from rarefy.scratch import sweep
from rarefy.shards.card import CardInfo
from rarefy.shards.claim import MANIFEST_FILE, check_claim
from rarefy.shards.seal import Sealed, seal
from rarefy.shards.store import Store
from rarefy.shards.verify import verify

if TYPE_CHECKING:
    from rarefy.generate.driver import GenerateOptions, GenerateResult
    from rarefy.generate.events import EventSink
    from rarefy.generate.progress import ProgressSink

REPAIRS = 2  # of one session; damage that comes back is not the shards'
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
    notice: Callable[[str], None],
    listeners: Sequence[EventSink] = (),
) -> RunResult:
    """Generate, seal, audit, report. Without enough images for the audit it ends before it has made any.

    Damaged shards are withdrawn and generated again, REPAIRS times at most. notice: is told why, in one line;
    listeners: get the events of generate.
    """
    from rarefy.audit.audit import AuditOptions, check_before, run_audit
    from rarefy.audit.page.report import write_report

    store = Store(options.out)
    device = "cuda" if options.gpus_per_actor and options.ray_address is None else "cpu"
    # A resumed run keeps the manifest of its first session, but the gates may have changed since.
    how = AuditOptions(device=device, gates=manifest.gates, allow_plugins=manifest.preset.allow_plugins)
    check_before(manifest, how)
    generated, sealed = _make(manifest, options, progress, notice, listeners)
    metrics = run_audit(store, how, stage)
    return RunResult(generated, sealed, metrics, write_report(store))


def _make(
    manifest: Manifest,
    options: GenerateOptions,
    progress: ProgressSink,
    notice: Callable[[str], None],
    listeners: Sequence[EventSink],
) -> tuple[GenerateResult, Sealed]:
    from rarefy.generate.driver import generate

    for repair in range(1, REPAIRS + 1):
        generated = generate(manifest, options, progress, listeners)
        try:
            return generated, seal_run(Store(options.out), repair=True)
        except ShardError as error:
            notice(f"{error} (repair {repair} of {REPAIRS})")
    generated = generate(manifest, options, progress, listeners)
    return generated, seal_run(Store(options.out), repair=True)


def seal_run(store: Store, repair: bool = False) -> Sealed:
    """Check and seal the run in ``store``. Raises ShardError naming missing or damaged shards.

    repair: withdraw damaged shards, so that generate makes them again (see ``rarefy.shards.seal.seal``).
    """
    manifest = _own_manifest(store)
    sweep()
    return seal(store, run_spec(manifest), _card(manifest), repair)


def verify_run(store: Store) -> dict[str, list[str]]:
    """Problems by shard name or file; empty if all that the plan says is there and undamaged. Writes nothing there."""
    manifest = _own_manifest(store)
    check_claim(store, manifest.digest)
    sweep()
    return verify(store, run_spec(manifest))


def _own_manifest(store: Store) -> Manifest:
    if not store.exists(MANIFEST_FILE):
        raise OutputError(bad("out", store.root, "a rarefy run: it has no manifest.toml"))
    return read_manifest(store)


def _card(manifest: Manifest) -> CardInfo:
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
    )
