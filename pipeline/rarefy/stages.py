"""Sealing and verifying a run's folder, and ``rarefy run``, which chains all stages.

The stages of ``rarefy run`` are imported there, because seal and verify need neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rarefy.audit.card import write_audit
from rarefy.audit.current import read_current
from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.schema import METRICS_PATH, REPORT_PATH
from rarefy.errors import OutputError, ShardError, bad
from rarefy.generate.progress import StageProgress, no_stage
from rarefy.manifest import Manifest
from rarefy.models.folder import licence
from rarefy.plan import SELECTED, is_selected_copy, run_spec
from rarefy.scratch import sweep
from rarefy.select.check import verify_copy, verify_selected
from rarefy.shards.card import CardInfo
from rarefy.shards.claim import check_claim
from rarefy.shards.index import is_sealed
from rarefy.shards.seal import Sealed, seal
from rarefy.shards.store import Store
from rarefy.shards.verify import verify

if TYPE_CHECKING:
    from rarefy.audit.audit import AuditOptions
    from rarefy.generate.driver import GenerateOptions, GenerateResult
    from rarefy.generate.events import EventSink
    from rarefy.generate.progress import ProgressSink
    from rarefy.select.stage import Selected, SelectOptions

CHECKING = "checking shards"
REPAIRS = 2  # of one session; damage that comes back is not the shards'


@dataclass(frozen=True)
class RunResult:
    """The result of ``rarefy run``. report: the page's path, relative to OUT; selected: with [select] only."""

    generated: GenerateResult
    sealed: Sealed
    metrics: dict[str, Any]
    report: str
    selected: Selected | None = None


@dataclass(frozen=True)
class Reports:
    """Who is told what a run does.

    progress: of generate; stages(command): gives what is told about a command's stages; notice: why something is
    repeated, in one line; listeners: get the events of generate.
    """

    progress: ProgressSink
    stages: Callable[[str], StageProgress]
    notice: Callable[[str], None]
    listeners: Sequence[EventSink] = ()


def run(manifest: Manifest, options: GenerateOptions, audit: AuditOptions, reports: Reports) -> RunResult:
    """Generate, seal, select if the manifest says so, audit, report.

    Without enough real images for the audit it ends before it has made any image. Damaged shards are withdrawn and
    generated again, REPAIRS times at most. audit: what to measure, and the device of select and audit; the gates are
    the run's.
    """
    from rarefy.audit.audit import check_before, run_audit
    from rarefy.select.stage import SelectOptions

    store = Store(options.out)
    # A resumed run keeps the manifest of its first session, but the gates may have changed since.
    audit = replace(audit, gates=manifest.gates, allow_plugins=manifest.preset.allow_plugins)
    check_before(store, manifest, audit)
    generated, sealed = _make(manifest, options, reports)
    selected = None
    if manifest.select is not None:
        choosing = SelectOptions(audit.device, keep_exhausted=options.keep_exhausted)
        selected = select(store, choosing, reports.stages("select"))
    metrics = run_audit(store, audit, reports.stages("audit"))
    return RunResult(generated, sealed, metrics, _report(store, reports), selected)


def _report(store: Store, reports: Reports) -> str:
    """Write the pages, unless another driver has deleted the results to measure this run again.

    Returns the path of the report.
    """
    from rarefy.view.pages import write_pages

    reports.stages("report")("writing the pages", 0, 1)
    try:
        return write_pages(store, reports.notice)["report"]
    except (OutputError, ShardError):
        if store.exists(METRICS_PATH):
            raise
        reports.notice("another driver audits this run again and will write its page")
        return REPORT_PATH


def _make(manifest: Manifest, options: GenerateOptions, reports: Reports) -> tuple[GenerateResult, Sealed]:
    from rarefy.generate.driver import generate

    generating, sealing = reports.stages("generate"), reports.stages("seal")
    for repair in range(1, REPAIRS + 1):
        generated = generate(manifest, options, reports.progress, reports.listeners, generating)
        try:
            return generated, seal_run(Store(options.out), repair=True, progress=sealing)
        except ShardError as error:
            reports.notice(f"{error} (repair {repair} of {REPAIRS})")
    generated = generate(manifest, options, reports.progress, reports.listeners, generating)
    return generated, seal_run(Store(options.out), repair=True, progress=sealing)


def select(store: Store, options: SelectOptions, progress: StageProgress) -> Selected:
    """Make the data set of a run with [select] from its sealed pool, in OUT/selected (see ``select_run``).

    Raises OutputError for a run without [select].
    """
    from rarefy.select.stage import select_run

    manifest = read_manifest(store)
    if manifest.select is None:
        raise OutputError(bad("out", store.root, "a run whose manifest has [select]"))
    selected = select_run(store, _selected_card(manifest), options, progress)
    _keep_audit(store)
    return selected


def seal_run(store: Store, repair: bool = False, progress: StageProgress = no_stage) -> Sealed:
    """Check and seal the run in ``store``. Raises ShardError naming missing or damaged shards.

    repair: withdraw damaged shards, so that generate makes them again (see ``rarefy.shards.seal.seal``).
    """
    manifest = read_manifest(store)
    sweep()
    sealed = seal(store, run_spec(manifest), _card(manifest), repair, partial(progress, CHECKING))
    _keep_audit(store)
    return sealed


def _keep_audit(store: Store) -> None:
    """Sealing writes a new card: put the results of an audit of these shards, if there is one, on it."""
    if not store.exists(METRICS_PATH):
        return
    with suppress(ShardError):  # of another format, or of other shards
        write_audit(store, read_current(store), None)


def verify_run(store: Store, progress: StageProgress = no_stage) -> dict[str, list[str]]:
    """Problems by shard name or file; empty if all that the plan says is there and undamaged. Writes nothing there."""
    manifest = read_manifest(store)
    if is_selected_copy(store, manifest):
        return verify_copy(store, manifest)
    check_claim(store, manifest.digest)
    sweep()
    problems = verify(store, run_spec(manifest), partial(progress, CHECKING))
    if manifest.select is not None and is_sealed(store):
        problems |= verify_selected(store, manifest)
    return problems


def _selected_card(manifest: Manifest) -> CardInfo:
    """The card of OUT/selected."""
    assert manifest.select is not None
    text = f"{manifest.select.text()}: {manifest.total:,} of {sum(manifest.pool.values()):,} sampled images"
    return replace(_card(manifest), selection=text, folder="")


def _card(manifest: Manifest) -> CardInfo:
    settings, preset = manifest.settings, manifest.preset
    every = "" if settings.classifier_every == 1 else f", classifier every {settings.classifier_every} steps"
    return CardInfo(
        name=manifest.name,
        preset=preset.name,
        image_size=preset.image_size,
        channels=preset.channels,
        class_names=preset.labels,
        guidance=tuple(term.name for term in manifest.terms),
        sampler=f"{settings.text()}{every}, {manifest.precision}, batch {manifest.batch}",
        selection="" if manifest.select is None else f"the data set is in `{SELECTED}`, chosen from these images",
        folder="" if manifest.select is None else f"{SELECTED}/",
        licence=licence(preset.path),
    )
