"""Generates all shards of a manifest that are not committed yet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from rarefy.errors import CheckpointError, DeviceError, bad
from rarefy.execution import check_execution
from rarefy.generate.cluster import connected
from rarefy.generate.fit import Request
from rarefy.generate.fleet import Fleet
from rarefy.generate.progress import ProgressSink, duration
from rarefy.manifest import Manifest, model_file
from rarefy.models.source import check_trained, on_this_machine
from rarefy.plan import estimate_bytes, make_plan, shard_names
from rarefy.shards.claim import claim_output
from rarefy.shards.listing import committed
from rarefy.shards.store import Store


@dataclass(frozen=True)
class GenerateOptions:
    """Where to write, and with what resources. None of it changes an image, except by rounding.

    actors: None starts as many as fit; gpus_per_actor: 0 for the CPU, may be a fraction; cpus_per_actor: batches
    sampled at once on the CPU, None divides all cores; ray_address: None starts an embedded Ray; max_attempts: per
    shard; compile: auto, off or full (see rarefy.execution).
    """

    out: str
    actors: int | None = None
    gpus_per_actor: float = 0.0
    cpus_per_actor: int | None = None
    ray_address: str | None = None
    shard_timeout_s: float = 6 * 3600.0
    max_attempts: int = 3
    compile: str = "auto"

    def check(self) -> None:
        """Raise DeviceError for values out of range."""
        for name, low in (("actors", 1), ("max_attempts", 1), ("cpus_per_actor", 1), ("gpus_per_actor", 0)):
            value = getattr(self, name)
            if value is not None and not low <= value < 100_000:
                raise DeviceError(bad(name, value, f"from {low} to 99999"))
        if not self.shard_timeout_s > 0:
            raise DeviceError(bad("shard_timeout_s", self.shard_timeout_s, "above 0"))


@dataclass(frozen=True)
class GenerateResult:
    """shards, images: of the whole run; made_*: of this session; retries: failed attempts; seconds: wall-clock time."""

    shards: int
    images: int
    made_shards: int
    made_images: int
    retries: int
    seconds: float

    def text(self) -> str:
        """The result in one line."""
        made = f"{self.made_images:,} of {self.images:,} images and {self.made_shards:,} of {self.shards:,} shards"
        return f"made {made} in {duration(self.seconds)}, {self.retries} retries"


def generate(manifest: Manifest, options: GenerateOptions, progress: ProgressSink) -> GenerateResult:
    """Generate and commit every shard of the plan that is not committed yet.

    Nothing is written before the models are loaded. Raises ShardError, which names the missing shards, DeviceError,
    OutputError or CheckpointError. After a KeyboardInterrupt the committed shards stay.
    """
    start = time.monotonic()
    options.check()
    store = Store(options.out)
    plan, done = make_plan(manifest), committed(store, shard_names(manifest), manifest.digest)
    left, retries = plan.num_shards - len(done), 0
    if left:
        check_trained(on_this_machine(manifest.model))
    if store.list():
        claim_output(store, manifest.text, manifest.digest, model_file(manifest))
    if left:
        _check_room(store, manifest)
        _check_weights(manifest, on_this_machine=options.ray_address is None)
        if options.ray_address is None and not options.gpus_per_actor:
            check_execution(torch.device("cpu"), manifest.precision, options.compile)  # otherwise the actors check
        request = Request(options.actors, options.gpus_per_actor, options.cpus_per_actor, left)
        with connected(request, options.ray_address) as resources:
            limits = options.shard_timeout_s, options.max_attempts
            fleet = Fleet(manifest, store, resources, *limits, options.compile)
            retries = fleet.finish(done, progress)
    images = plan.total - sum(marker.rows for marker in done.values())
    return GenerateResult(plan.num_shards, plan.total, left, images, retries, time.monotonic() - start)


def _check_weights(manifest: Manifest, on_this_machine: bool) -> None:
    """Report missing weights before any actor is started."""
    spec, preset = manifest.model, manifest.preset
    for name, path in (("model.checkpoint", spec.checkpoint), ("model.classifier", spec.classifier)):
        if path is None and spec.source is None and not preset.embedded:
            raise CheckpointError(bad(name, path, f"the path of a file for {preset.name}, whose weights do not ship"))
        if path is not None and on_this_machine and not Path(path).is_file():
            raise CheckpointError(bad(name, path, "a file that can be read on this machine"))


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
