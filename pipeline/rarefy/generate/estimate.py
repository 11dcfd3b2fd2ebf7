"""What a manifest would produce, and an estimate of how long this machine would take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch

from rarefy.cores import usable_cores
from rarefy.device import has_bfloat16
from rarefy.diffusion.sampler import Chain, sample
from rarefy.errors import CheckpointError
from rarefy.fill import trained_on
from rarefy.generate.execution import full_batch, load_for_run
from rarefy.generate.memory import BatchMemory
from rarefy.generate.progress import duration
from rarefy.guidance.base import NetworkTerm
from rarefy.manifest import Manifest
from rarefy.models.load import Models
from rarefy.plan import estimate_bytes, make_plan

PROBE_STEPS = 4
LONGEST_PERIOD = 16
PROBE_BATCH = 16
SLOW_STEP_S = 2.0  # if one step of one image takes longer, no further steps are timed


@dataclass(frozen=True)
class PlanSummary:
    """A plan in numbers. images, shards: to sample; kept: how many of them [select] keeps, None without it.

    classes: (id, name, images of the data set); estimated_seconds: None if weights are missing; selection: the rule.
    digest: None for a model folder that is not trained yet, because the weights are part of it.
    real: number of real images by class id, where known; real_are: which images were counted; estimate: how the
    time was estimated, or why it was not.
    """

    name: str
    digest: str | None
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
    real: Mapping[int, int] = field(default_factory=dict)
    real_are: str = ""
    kept: int | None = None
    selection: str = ""

    def text(self) -> str:
        """The summary as text."""
        seconds = self.estimated_seconds
        return "\n".join(
            [
                f"{self.name}: {self.images:,} images in {self.shards:,} shards of {self.shard_size:,}",
                *([] if self.kept is None else [f"[select] keeps {self.kept:,} of them: {self.selection}"]),
                f"model {self.preset}, {self.steps} steps, guidance {' + '.join(self.guidance) or 'none'}",
                f"digest {self.digest or 'unknown until the model is trained'}",
                *self._class_lines(),
                f"size (estimate): {self.estimated_bytes / 1e6:,.1f} MB of shards",
                f"time (estimate): {'unknown' if seconds is None else duration(seconds)}, {self.estimate}",
            ]
        )

    def _class_lines(self) -> list[str]:
        """A table of the classes: what is there, if that is known, and what would be made (or kept of it)."""
        if not self.real:
            rows = [f"  {class_id:>5}  {name:<24} {count:>12,}" for class_id, name, count in self.classes]
            return [f"  class  name                     {'images' if self.kept is None else 'images kept':>12}", *rows]
        made, images = ("to make", self.images) if self.kept is None else ("to keep", self.kept)
        lines = [f"  class  name                         real      {made}        total"]
        for class_id, name, count in self.classes:
            real = self.real.get(class_id, 0)
            lines.append(f"  {class_id:>5}  {name:<20} {real:>12,} {count:>12,} {real + count:>12,}")
        real = sum(self.real.values())
        lines.append(f"         {'all':<20} {real:>12,} {images:>12,} {real + images:>12,}")
        return [*lines, f"real: {self.real_are}"]


def summarize(manifest: Manifest) -> PlanSummary:
    """Summarize a manifest's plan. Loads the models, if their files exist, and times a few steps."""
    plan, preset = make_plan(manifest), manifest.preset
    seconds, estimate = _seconds(manifest)
    real, real_are = manifest.real, "images in the data that [classes] fills up"
    if not real:
        real, real_are = trained_on(preset), "images that the model was trained on"
    shown = {*manifest.counts, *real}
    return PlanSummary(
        name=manifest.name,
        digest=manifest.digest if manifest.model.source is None or manifest.model.trained else None,
        preset=preset.name,
        images=plan.total,
        shards=plan.num_shards,
        shard_size=plan.shard_size,
        steps=len(manifest.settings.chain(preset, manifest.terms).schedule),
        guidance=tuple(term.name for term in manifest.terms),
        classes=tuple((k, preset.class_name(k), manifest.counts.get(k, 0)) for k in sorted(shown)),
        estimated_bytes=estimate_bytes(manifest),
        estimated_seconds=seconds,
        estimate=estimate,
        real=dict(real),
        real_are=real_are if real else "",
        kept=None if manifest.select is None else manifest.total,
        selection="" if manifest.select is None else manifest.select.text(),
    )


def _seconds(manifest: Manifest) -> tuple[float | None, str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # As in an actor: on the CPU each batch runs in one thread, and each core runs a batch.
    threads, cores = torch.get_num_threads(), usable_cores() if device.type == "cpu" else 1
    chain = manifest.settings.chain(manifest.preset, manifest.terms)
    batch = min(full_batch(manifest), PROBE_BATCH)
    try:
        models = load_for_run(dataclasses.replace(manifest, batch=batch), device, "auto")
        with BatchMemory(device).batch(batch):
            per_image = _image_step_seconds(models, chain, batch) * len(chain.schedule) / cores
    except CheckpointError as error:
        return None, str(error)
    finally:
        torch.set_num_threads(threads)
    place = "one GPU" if device.type == "cuda" else f"{cores} CPU cores"
    further = {"rejected candidates": manifest.accept, "the selection": manifest.select}
    parts = ["start-up", "writing", *(what for what, asked in further.items() if asked)]
    excluded = f"{', '.join(parts[:-1])} and {parts[-1]}"
    dtype = "bfloat16" if manifest.precision == "fast" and has_bfloat16(device) else "float32"
    estimate = f"from a few steps timed here on {place} in {dtype}, without {excluded}"
    return per_image * sum(manifest.pool.values()), estimate


def _image_step_seconds(models: Models, whole: Chain, batch: int) -> float:
    """Seconds per step and image. The timed steps span the whole chain, so windows count as in the run."""
    steps = min(len(whole.schedule), max(PROBE_STEPS, _period(whole)))
    chain = dataclasses.replace(whole, schedule=whole.schedule.thinned(steps))
    _time_chain(models, chain, 1, 1)  # warm-up
    one = _time_chain(models, chain, 1, 1)
    if one > SLOW_STEP_S:
        return one if _period(whole) == 1 else _time_chain(models, chain, 1, steps) / steps
    _time_chain(models, chain, batch, 1)  # compilation
    return _time_chain(models, chain, batch, steps) / (steps * batch)


def _period(chain: Chain) -> int:
    """The number of steps after which all periodic work has been done, at most LONGEST_PERIOD."""
    every = [chain.classifier_every, *(term.every for term in chain.terms if isinstance(term, NetworkTerm))]
    return min(max(every), LONGEST_PERIOD)


def _time_chain(models: Models, chain: Chain, batch: int, steps: int) -> float:
    """Seconds for the chain's first ``steps`` steps, or for all if it has fewer."""
    y = torch.zeros(batch, dtype=torch.int64, device=models.device)
    start = time.perf_counter()
    for state in islice(sample(models, y, list(range(batch)), chain), steps):
        x = state.x
    x.sum().item()  # waits for the device
    return time.perf_counter() - start
