"""What a manifest would make, and about how long one actor on this machine would take."""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass
from itertools import islice

import torch

from rarefy.diffusion.sampler import Chain, sample
from rarefy.errors import CheckpointError
from rarefy.execution import load_prepared, prepare
from rarefy.generate.progress import duration
from rarefy.guidance.base import NetworkTerm
from rarefy.manifest import Manifest
from rarefy.models.load import Models
from rarefy.plan import estimate_bytes, make_plan

PROBE_STEPS = 4
LONGEST_ROUND = 16
PROBE_BATCH = 16
SLOW_STEP_S = 2.0  # above this, one image's one step tells enough


@dataclass(frozen=True)
class PlanSummary:
    """A plan in numbers. classes: (id, name, images); estimated_*: estimates; seconds None where weights are missing.

    estimate: how the seconds were found, or why they were not.
    """

    name: str
    digest: str
    preset: str
    images: int
    shards: int
    shard_size: int
    steps: int
    guidance: tuple[str, ...]
    classes: tuple[tuple[int, str, int], ...]
    estimated_bytes: int
    estimated_seconds: float | None
    estimate: str

    def text(self) -> str:
        """The summary as lines for people."""
        rows = [f"  {class_id:>5}  {name:<24} {count:>12,}" for class_id, name, count in self.classes]
        seconds = self.estimated_seconds
        return "\n".join(
            [
                f"{self.name}: {self.images:,} images in {self.shards:,} shards of {self.shard_size:,}",
                f"model {self.preset}, {self.steps} steps, guidance {' + '.join(self.guidance) or 'none'}",
                f"digest {self.digest}",
                "  class  name                           images",
                *rows,
                f"size (estimate): {self.estimated_bytes / 1e6:,.1f} MB of shards",
                f"time (estimate): {'unknown' if seconds is None else duration(seconds)}, {self.estimate}",
            ]
        )


def summarize(manifest: Manifest) -> PlanSummary:
    """The plan's numbers; loads the models and times a few steps where their files are there."""
    plan, preset = make_plan(manifest), manifest.preset
    seconds, how = _seconds(manifest)
    return PlanSummary(
        name=manifest.name,
        digest=manifest.digest,
        preset=preset.name,
        images=plan.total,
        shards=plan.num_shards,
        shard_size=plan.shard_size,
        steps=len(manifest.settings.chain(preset, manifest.terms).schedule),
        guidance=tuple(term.name for term in manifest.terms),
        classes=tuple((class_id, preset.class_name(class_id), n) for class_id, n in manifest.counts.items()),
        estimated_bytes=estimate_bytes(manifest),
        estimated_seconds=seconds,
        estimate=how,
    )


def _seconds(manifest: Manifest) -> tuple[float | None, str]:
    spec, preset = manifest.model, manifest.preset
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hashes = spec.checkpoint_sha256, spec.classifier_sha256
    try:
        models = load_prepared(preset, spec.checkpoint, spec.classifier, hashes, device, manifest.precision)
    except CheckpointError as error:
        return None, str(error)
    chain = manifest.settings.chain(preset, manifest.terms)
    # As actors do: on the CPU a batch has one thread, and every core a batch.
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0)) if device.type == "cpu" else 1
    torch.set_num_threads(1)
    try:
        per_image = _image_step_seconds(models, manifest, chain) * len(chain.schedule) / cores
    finally:
        torch.set_num_threads(threads)
    place = "one GPU" if device.type == "cuda" else f"{cores} CPU cores"
    more = ", without rejected candidates" if manifest.accept else ""
    dtype = str(models.unet.dtype).removeprefix("torch.")
    how = f"from a few steps timed here on {place} in {dtype}, no start-up or writing{more}"
    return per_image * manifest.total, how


def _image_step_seconds(models: Models, manifest: Manifest, whole: Chain) -> float:
    """Seconds a step an image. The probe's few steps spread over the whole chain, so windows weigh as in the run."""
    steps = min(len(whole.schedule), max(PROBE_STEPS, _round(whole)))
    chain = dataclasses.replace(whole, schedule=whole.schedule.thinned(steps))
    _time_chain(models, chain, 1, 1)  # caches
    one = _time_chain(models, chain, 1, 1)
    if one > SLOW_STEP_S:
        return one if _round(whole) == 1 else _time_chain(models, chain, 1, steps) / steps
    batch = min(manifest.batch, manifest.total, PROBE_BATCH)
    for network in (models.unet, models.classifier):
        prepare(network, models.device, manifest.precision, batch=batch)
    _time_chain(models, chain, batch, 1)  # compilation
    return _time_chain(models, chain, batch, steps) / (steps * batch)


def _round(chain: Chain) -> int:
    """The steps after which what is not done at every step has come round; of long rounds a part tells enough."""
    every = [chain.classifier_every, *(term.every for term in chain.terms if isinstance(term, NetworkTerm))]
    return min(max(every), LONGEST_ROUND)


def _time_chain(models: Models, chain: Chain, batch: int, steps: int) -> float:
    """Seconds of the chain's first ``steps`` steps, or of all where it has fewer."""
    y = torch.zeros(batch, dtype=torch.int64, device=models.device)
    start = time.perf_counter()
    for state in islice(sample(models, y, list(range(batch)), chain), steps):
        x = state.x
    x.sum().item()  # waits for the device
    return time.perf_counter() - start
