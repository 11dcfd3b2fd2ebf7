"""Generates all shards of a manifest that are not committed yet."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rarefy.errors import CheckpointError, DeviceError, OutputError, bad, near_path
from rarefy.execution import check_execution
from rarefy.generate.actor import ShardGenerator
from rarefy.generate.cluster import connected
from rarefy.generate.events import EventSink
from rarefy.generate.fit import Request, check_gpus
from rarefy.generate.fleet import Fleet, Limits
from rarefy.generate.progress import ProgressSink, StageProgress, duration, no_stage
from rarefy.generate.score import CandidateLimit
from rarefy.generate.tally import Tally
from rarefy.generate.worker import RayCluster
from rarefy.manifest import Manifest, model_file
from rarefy.models.source import check_trained, on_this_machine
from rarefy.plan import estimate_bytes, make_plan, shard_names
from rarefy.shards.claim import claim_output
from rarefy.shards.listing import committed_numbers, count_not_accepted
from rarefy.shards.retry import PATIENCE_S
from rarefy.shards.store import Store

FAILURES = "logs/failures.json"


@dataclass(frozen=True)
class GenerateOptions:
    """Where to write, and with what resources. None of it changes an image, except by rounding.

    actors: most at once, None as many as fit; gpus_per_actor: 0 for the CPU, may be a fraction; cpus_per_actor: batches
    sampled at once on the CPU, None divides all cores; ray_address: None starts an embedded Ray; shard_timeout_s: hard
    limit, None follows the actors' progress; max_attempts: per shard; compile: auto, off or full (see
    rarefy.execution); storage_patience_s: how long a failing storage call is repeated; max_candidates, keep_exhausted:
    what slots that run out of candidates may do (see CandidateLimit).
    """

    out: str
    actors: int | None = None
    gpus_per_actor: float = 0.0
    cpus_per_actor: int | None = None
    ray_address: str | None = None
    shard_timeout_s: float | None = None
    max_attempts: int = 3
    compile: str = "auto"
    storage_patience_s: float = PATIENCE_S
    max_candidates: int | None = None
    keep_exhausted: bool = False

    def check(self) -> None:
        """Raise DeviceError for values out of range."""
        for name, low in (("actors", 1), ("max_attempts", 1), ("cpus_per_actor", 1), ("gpus_per_actor", 0)):
            value = getattr(self, name)
            if value is not None and not low <= value < 100_000:
                raise DeviceError(bad(name, value, f"from {low} to 99999"))
        check_gpus(self.gpus_per_actor)
        for name in ("shard_timeout_s", "storage_patience_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds < math.inf:
                raise DeviceError(bad(name, seconds, "a number of seconds above 0"))


@dataclass(frozen=True)
class GenerateResult:
    """shards, images: of the whole run; made_*: of this session; retries: failed attempts; seconds: wall-clock time.

    not_accepted: images of the whole run that were kept although no candidate passed [accept]; None unless they may be.
    """

    shards: int
    images: int
    made_shards: int
    made_images: int
    retries: int
    seconds: float
    not_accepted: int | None = None

    def text(self) -> str:
        """The result in one line, or two if images may have failed [accept]."""
        made = f"{self.made_images:,} of {self.images:,} images and {self.made_shards:,} of {self.shards:,} shards"
        line = f"made {made} in {duration(self.seconds)}, {self.retries} retries"
        if self.not_accepted is None:
            return line
        return f"{line}\n[accept]: {self.not_accepted:,} of {self.images:,} images did not pass and were kept"


def generate(
    manifest: Manifest,
    options: GenerateOptions,
    progress: ProgressSink,
    listeners: Sequence[EventSink] = (),
    stage: StageProgress = no_stage,
) -> GenerateResult:
    """Generate and commit every shard of the plan that is not committed yet.

    stage: told what happens before the first status. Nothing is written before the models are
    loaded. Raises ShardError or TemporaryError, which name the missing shards, DeviceError, OutputError or
    CheckpointError. After a KeyboardInterrupt the committed shards stay.
    """
    start = time.monotonic()
    options.check()
    # With [select] and no [accept], --keep-exhausted is meant for [select].
    of_select = manifest.select is not None and manifest.accept is None
    candidates = CandidateLimit(options.max_candidates, options.keep_exhausted and not of_select)
    candidates.check(manifest.accept)
    store = Store(options.out, options.storage_patience_s)
    plan = make_plan(manifest)
    done = {shard for shard in committed_numbers(store, manifest.prefix) if shard < plan.num_shards}
    left = plan.num_shards - len(done)
    if left:
        check_trained(on_this_machine(manifest.model))
    if store.list():
        claim_output(store, manifest.text, manifest.digest, model_file(manifest))
    tally = Tally(plan, done)
    if left:
        _check_room(store, manifest)
        _check_weights(manifest, on_this_machine=options.ray_address is None)
        if options.ray_address is None and not options.gpus_per_actor:
            check_execution(torch.device("cpu"), manifest.precision, options.compile)  # otherwise the actors check
        request = Request(options.actors, options.gpus_per_actor, options.cpus_per_actor, left)
        with connected(request, options.ray_address, lambda text: stage(text, 0, 1)) as resources:
            place = store.root, resources.device, resources.cpus, options.compile
            cluster = RayCluster(ShardGenerator, (manifest, *place, candidates, store.patience_s), resources)
            limits = Limits(options.storage_patience_s, options.shard_timeout_s, options.max_attempts)
            fleet = Fleet(manifest, store, cluster, resources, limits, listeners)
            tally = fleet.finish(done, _given_up_earlier(store, plan.num_shards), progress)
    made = tally.made_shards, tally.made_images
    seconds = time.monotonic() - start
    _, kept = candidates.rounds(manifest.accept)
    refused = count_not_accepted(store, shard_names(manifest)) if kept else None
    return GenerateResult(plan.num_shards, plan.total, *made, tally.retries, seconds, refused)


def _given_up_earlier(store: Store, shards: int) -> set[int]:
    """Shards that earlier sessions gave up, as far as their report can be read. They come last."""
    try:
        rows = json.loads(store.read_bytes(FAILURES))
        numbers = {int(row["shard"].rpartition("-")[2]) for row in rows}
    except (OutputError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return set()
    return {number for number in numbers if 0 <= number < shards}


def _check_weights(manifest: Manifest, on_this_machine: bool) -> None:
    """Report missing weights before any actor is started."""
    spec, preset = manifest.model, manifest.preset
    for name, path in (("model.checkpoint", spec.checkpoint), ("model.classifier", spec.classifier)):
        if path is None and spec.source is None and not preset.embedded:
            raise CheckpointError(bad(name, path, f"the path of a file for {preset.name}, whose weights do not ship"))
        if path is not None and on_this_machine and not Path(path).is_file():
            raise CheckpointError(bad(name, path, f"a file that can be read on this machine{near_path(path)}"))


def _check_room(store: Store, manifest: Manifest) -> None:
    """Check that OUT can be written. A local OUT is not created: its nearest existing parent is checked instead."""
    if store.is_local:
        folder = Path(store.path)
        while not folder.exists():
            folder = folder.parent
        # Half of the estimate, which may be too high: a run that fits must not be refused.
        Store(str(folder)).check_writable(estimate_bytes(manifest) // 2)
    else:
        store.check_writable()
