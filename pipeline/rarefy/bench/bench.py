"""``rarefy bench``: how fast this machine takes a manifest's guided step, and how that grows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rarefy.bench.actors import Share, image_steps_per_second
from rarefy.bench.batch import BestBatch, find_batch
from rarefy.bench.flops import Flops, count_flops
from rarefy.bench.measure import ceiling_gflops, machine
from rarefy.bench.memory import MARGIN, free_bytes, peak_bytes, reset_peak
from rarefy.bench.step import (
    ENOUGH_S,
    LEAST,
    MOST,
    Split,
    classifier_passes,
    full_steps,
    network_term_share,
    time_step,
)
from rarefy.bench.workload import enlarged, find_device, load_workload, random_models
from rarefy.errors import DeviceError, bad
from rarefy.fast.cpu.allocator import keep_freed_memory
from rarefy.fast.precision import execution_on, set_up
from rarefy.manifest import Manifest
from rarefy.models.load import Models

AUTO = "auto"
SIZES = (1, 2)
LIGHT_FLOPS, LIGHT_BATCH = 10**10, 8  # an image's U-Net pass below which auto begins there instead of at 1
Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchOptions:
    """batch: sizes with commas, ``auto``, or None for the manifest's; actors: counts with commas, None for no such row.

    growth: also twice the image size; threads: torch's, in each process; compile: auto, off or full.
    """

    batch: str | None = None
    growth: bool = False
    actors: str | None = None
    threads: int = 1
    device: str = "cpu"
    compile: str = "auto"


@dataclass(frozen=True)
class Point:
    """One measurement. split: seconds of a full step; *_gflops: 10^9 operations a second in that part's time.

    images_per_second: for the manifest's whole chain; peak_bytes: of this process (GPU: of torch) while stepping.
    """

    batch: int
    image_size: int
    split: Split
    seconds_a_step: float
    unet_gflops: float
    classifier_gflops: float
    images_per_second: float
    peak_bytes: int


@dataclass(frozen=True)
class ActorsPoint:
    """Processes side by side, in wall time: other programs on the machine slow them."""

    actors: int
    images_per_second: float


@dataclass(frozen=True)
class BenchResult:
    """All that was measured. dtype: of most products; flops: of one image; limit_bytes: what ``auto`` may fill.

    best: None without ``auto``.
    """

    preset: str
    weights: str
    precision: str
    dtype: str
    compile: str
    kernels: str
    guidance: tuple[str, ...]
    method: str
    steps: int
    classifier_passes: int
    flops: Flops
    ceiling_gflops: float
    weights_bytes: int
    limit_bytes: int
    batches: tuple[Point, ...]
    best: BestBatch | None
    sizes: tuple[Point, ...]
    actors: tuple[ActorsPoint, ...]
    machine: dict[str, object]


class Bench:
    """One manifest's model on one device. Raises DeviceError where it cannot run there as asked for."""

    def __init__(self, manifest: Manifest, options: BenchOptions, say: Say) -> None:
        self.manifest, self.options, self.say = manifest, options, say
        self.device = find_device(options.device)
        self.execution = execution_on(self.device, manifest.precision, options.compile)
        if not 1 <= options.threads <= 1024:
            raise DeviceError(bad("threads", options.threads, "from 1 to 1024"))
        self.chain = manifest.settings.chain(manifest.preset, manifest.terms)
        self.passes = classifier_passes(self.chain)

    def run(self) -> BenchResult:
        """Measure all that the options ask for; torch keeps their number of threads."""
        options, manifest, preset = self.options, self.manifest, self.manifest.preset
        sizes = None if options.batch == AUTO else numbers("batch", options.batch or str(manifest.batch), 65_536)
        counts = numbers("actors", options.actors, 64) if options.actors else []
        torch.set_num_threads(options.threads)
        if self.device.type == "cpu":
            keep_freed_memory()
        models, weights = load_workload(manifest, self.device)
        ceiling = self._ceiling(models.unet.dtype)
        held = self._held()
        limit = held + int(MARGIN * free_bytes(self.device))
        points, best = self._batches(models, sizes, held, limit)
        chosen = points[best.batch if best else max(points)]
        return BenchResult(
            preset=preset.name,
            weights=weights,
            precision=manifest.precision,
            dtype=str(models.unet.dtype).removeprefix("torch."),
            compile=options.compile,
            kernels=self.execution.kernels,
            guidance=tuple(term.name for term in manifest.terms),
            method=manifest.settings.method,
            steps=len(self.chain.schedule),
            classifier_passes=self.passes,
            flops=count_flops(preset),
            ceiling_gflops=ceiling,
            weights_bytes=sum(p.nbytes for n in (models.unet, models.classifier) for p in n.parameters()),
            limit_bytes=limit,
            batches=tuple(points.values()),
            best=best,
            sizes=self._sizes(chosen) if options.growth else (),
            actors=tuple(self._actors(count, chosen) for count in counts),
            machine=machine(self.device),
        )

    def _ceiling(self, dtype: torch.dtype) -> float:
        """GFLOP/s this device can reach: on a CPU as many times one thread's as there are threads."""
        threads = 1 if self.device.type == "cuda" else self.options.threads
        return ceiling_gflops(dtype, self.device) * threads

    def _held(self) -> int:
        reset_peak(self.device)
        return peak_bytes(self.device)

    def _batches(
        self, models: Models, sizes: list[int] | None, held: int, limit: int
    ) -> tuple[dict[int, Point], BestBatch | None]:
        """Small batches first: memory that a large one leaves behind would count for them."""
        if sizes is None:
            first = LIGHT_BATCH if count_flops(models.preset).unet < LIGHT_FLOPS else 1
            return find_batch(lambda batch: self._point(models, batch), first, held, limit)
        return {batch: self._point(models, batch) for batch in sorted(sizes)}, None

    def _point(self, models: Models, batch: int) -> Point:
        torch.compiler.reset()  # else torch.compile stops at so many shapes, and larger batches run eager
        try:
            set_up((models.unet, models.classifier), self.execution, batch)
            split = time_step(models, full_steps(self.chain), batch)
        except torch.OutOfMemoryError as error:
            raise DeviceError(bad("batch", batch, f"small enough for the memory of {self.device}")) from error
        peak, flops = peak_bytes(self.device), count_flops(models.preset)
        classifier = split.classifier_forward + split.classifier_backward
        every_step = split.unet + split.rest + network_term_share(self.chain) * split.terms
        chain_seconds = len(self.chain.schedule) * every_step + self.passes * classifier
        operations = flops.classifier_forward + flops.classifier_backward
        size = models.preset.image_size
        self.say(f"batch {batch}, {size} px: {split.step:.4f} s a step")
        return Point(
            batch=batch,
            image_size=size,
            split=split,
            seconds_a_step=split.step,
            unet_gflops=batch * flops.unet / split.unet / 1e9,
            classifier_gflops=batch * operations / classifier / 1e9 if classifier else 0.0,
            images_per_second=batch / chain_seconds,
            peak_bytes=peak,
        )

    def _sizes(self, chosen: Point) -> tuple[Point, ...]:
        """The chosen batch at the model's own image size and larger ones, with random weights of the same widths."""
        found = []
        for factor in SIZES:
            preset = enlarged(self.manifest.preset, factor)
            models = random_models(preset, self.manifest.precision, self.device)
            found.append(self._point(models, chosen.batch))
        return tuple(found)

    def _actors(self, count: int, chosen: Point) -> ActorsPoint:
        steps = min(max(LEAST, round(ENOUGH_S / chosen.seconds_a_step)), MOST)
        options = self.options
        share = Share(self.manifest, self.execution, options.device, options.threads, chosen.batch, steps)
        images_a_step = chosen.images_per_second * chosen.seconds_a_step / chosen.batch
        rate = image_steps_per_second(share, count) * images_a_step
        self.say(f"actors {count}: {rate:.3f} images/s")
        return ActorsPoint(count, rate)


def numbers(field: str, text: str, most: int) -> list[int]:
    """Whole numbers from 1, with commas between, each once. Raises DeviceError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= most for part in parts):
        auto = "auto or " if field == "batch" else ""
        raise DeviceError(bad(field, text, f"{auto}whole numbers from 1 to {most} with commas between"))
    return list(dict.fromkeys(int(part) for part in parts))
