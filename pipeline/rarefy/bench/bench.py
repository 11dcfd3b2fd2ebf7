"""``rarefy bench``: how fast this machine takes a manifest's guided steps, and how that grows."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, replace
from threading import Barrier

import torch

from rarefy.bench.measure import machine
from rarefy.bench.step import Execution, Split, load, time_steps
from rarefy.device import find_device, free_bytes, peak_bytes, reset_peak
from rarefy.errors import DeviceError, ManifestError, bad
from rarefy.execution import check_execution, has_bfloat16, repeatable
from rarefy.manifest import Manifest, load_manifest, parse_manifest
from rarefy.models.config import NetworkConfig
from rarefy.models.folder import find_model

AUTO = "auto"
GAIN, LARGEST = 0.05, 4096  # auto doubles the batch while that gains 5% in images/s, up to 4,096
SMALL_IMAGE, FIRST_BATCH = 32, 8  # auto begins at 8 images up to 32 x 32 pixels, else at 1
MEMORY_SHARE = 0.8  # of free memory, since allocators round up and a run also scores and encodes
_MANIFEST = """
name = "bench"
model.preset = "{name}"
sampler.method = "ancestral"
classes.total = 1
guidance = [{{ term = "classifier", scale = {scale} }}]
"""


@dataclass(frozen=True)
class BenchOptions:
    """batch: sizes separated by commas, ``auto``, or None for the manifest's; growth: also twice the image size.

    actors: numbers of processes, None for no such rows; threads: torch's, in each process; compile: auto, off or full.
    """

    batch: str | None = None
    growth: bool = False
    actors: str | None = None
    threads: int = 1
    device: str = "cpu"
    compile: str = "auto"


@dataclass(frozen=True)
class Point:
    """One measurement. split: mean seconds of one step in one process; images_per_second: of all processes together.

    peak_bytes: of one process (on a GPU: of torch) during the steps; loaded_bytes: before them.
    """

    actors: int
    batch: int
    image_size: int
    seconds_a_step: float
    split: Split
    images_per_second: float
    peak_bytes: int
    loaded_bytes: int


@dataclass(frozen=True)
class BenchResult:
    """All measurements. dtype: of most products; best: the batch that ``auto`` found; reason: why not twice as many."""

    preset: str
    weights: str
    precision: str
    dtype: str
    compile: str
    steps: int
    best: int | None
    reason: str
    batches: tuple[Point, ...]
    sizes: tuple[Point, ...]
    actors: tuple[Point, ...]
    machine: dict[str, object]


def bench_manifest(
    path: str | None, preset: str | None, precision: str | None, allow_plugins: bool = False
) -> Manifest:
    """The manifest at that path, or 250 ancestral steps of a preset with classifier guidance. Raises ManifestError.

    allow_plugins: see ``load_manifest``.
    """
    if path is not None and preset is not None:
        raise ManifestError(bad("preset", preset, "allowed with a manifest, which names its own model"))
    model = find_model(preset or "fashion-mnist-28")
    text = _MANIFEST.format(name=model.name, scale=model.recommended_scale)
    manifest = parse_manifest(text, "bench") if path is None else load_manifest(path, allow_plugins=allow_plugins)
    return replace(manifest, precision=precision or manifest.precision)


class Bench:
    """One manifest's model on one device. say: takes lines of progress. Raises DeviceError."""

    def __init__(self, manifest: Manifest, options: BenchOptions, say: Callable[[str], None]) -> None:
        self.manifest, self.options, self.say = manifest, options, say
        self.device = find_device(options.device)
        check_execution(self.device, manifest.precision, options.compile)
        unet = manifest.preset.unet
        if options.growth and not isinstance(unet, NetworkConfig):
            raise DeviceError(bad("growth", unet.kind, "adm, the kind that can be built for any image size"))
        if not 1 <= options.threads <= 1024:
            raise DeviceError(bad("threads", options.threads, "from 1 to 1024"))
        self.sizes = [] if options.batch == AUTO else numbers("batch", options.batch or str(manifest.batch), 65_536)
        self.actors = numbers("actors", options.actors, 64) if options.actors else []

    def run(self) -> BenchResult:
        """Measure what the options ask for, each point in new processes."""
        manifest, preset = self.manifest, self.manifest.preset
        limit, best, reason = int(MEMORY_SHARE * free_bytes(self.device)), None, ""
        if self.sizes:
            points = {batch: self.point(batch) for batch in self.sizes}
        else:
            first = FIRST_BATCH if preset.image_size <= SMALL_IMAGE else 1
            points, best, reason = find_batch(self.point, first, limit)
        batch = best or max(points)
        reduced = manifest.precision == "fast" and has_bfloat16(self.device)
        return BenchResult(
            preset=preset.name,
            weights="loaded" if manifest.model.trained else "random, since the files are not here",
            precision=manifest.precision,
            dtype="bfloat16" if reduced else "float32",
            compile=self.options.compile,
            steps=len(manifest.settings.chain(preset, manifest.terms).schedule),
            best=best,
            reason=reason,
            batches=tuple(points.values()),
            sizes=(self.point(batch, factor=2),) if self.options.growth else (),
            actors=tuple(self.point(batch, actors) for actors in self.actors),
            machine=machine(self.device),
        )

    def point(self, batch: int, actors: int = 0, factor: int = 1) -> Point:
        """actors: processes, timed in wall time; 0 for this one. factor: of the image size, with random weights."""
        options, context = self.options, multiprocessing.get_context("spawn")
        execution = Execution(options.device, self.manifest.precision, options.compile)
        job = self.manifest, execution, options.threads, batch, factor
        try:
            if not actors:
                results = [measure(*job)]
            else:
                with context.Manager() as manager, ProcessPoolExecutor(actors, context) as pool:
                    ready = manager.Barrier(actors, timeout=1800.0)
                    results = [future.result() for future in [pool.submit(measure, *job, ready) for _ in range(actors)]]
        except torch.OutOfMemoryError as error:
            raise DeviceError(bad("batch", batch, f"small enough for the memory of {self.device}")) from error
        point = replace(results[0], actors=len(results), images_per_second=sum(r.images_per_second for r in results))
        self.say(f"{point.actors} actors, batch {batch}, {point.image_size} px: {point.seconds_a_step:.4f} s per step")
        return point


def measure(
    manifest: Manifest, execution: Execution, threads: int, batch: int, factor: int, ready: Barrier | None = None
) -> Point:
    """One process's measurement. Sets torch's number of threads. ready: where all processes meet before the steps."""
    torch.set_num_threads(threads)
    torch.compiler.reset()  # or torch.compile refuses further batch sizes
    preset, chain = manifest.preset, manifest.settings.chain(manifest.preset, manifest.terms)
    unet = replace(preset.unet, image_size=factor * preset.image_size)
    classifier = preset.classifier and replace(preset.classifier, image_size=factor * preset.image_size)
    preset = replace(preset, unet=unet, classifier=classifier)
    models = load(preset, manifest.model if factor == 1 else None, execution, batch)
    reset_peak(models.device)
    loaded_bytes = peak_bytes(models.device)
    if ready:
        ready.wait()
    with repeatable(execution.precision):
        split = time_steps(models, chain, batch, wall=ready is not None)
    seconds = sum(astuple(split))
    rate = batch / (seconds * len(chain.schedule))
    peak = max(peak_bytes(models.device), loaded_bytes)  # Linux counts pages per CPU: a later peak can read a bit less
    return Point(1, batch, preset.image_size, seconds, split, rate, peak, loaded_bytes)


def find_batch(measure: Callable[[int], Point], first: int, limit_bytes: int) -> tuple[dict[int, Point], int, str]:
    """Double the batch from ``first`` while that gains GAIN in images/s and the next one should fit ``limit_bytes``.

    limit_bytes: for all that comes on top of the loaded models. Memory is taken to grow as in the last doubling.
    Returns all measurements by batch, the best batch, and why it is not larger.
    """
    points: dict[int, Point] = {}
    batch, before = first, 0
    while True:
        points[batch] = point = measure(batch)
        if before and (gain := point.images_per_second / points[before].images_per_second - 1) < GAIN:
            return points, before, f"{batch} changes images/s by {gain:+.1%}, less than {GAIN:.0%}"
        if 2 * batch > LARGEST:
            return points, batch, "the largest batch that is tried"
        base = points[first].loaded_bytes
        growth = max(point.peak_bytes - (points[before].peak_bytes if before else base), 0)
        needed = point.peak_bytes - base + growth * batch / (batch - before)
        if needed > limit_bytes:
            return points, batch, f"{2 * batch} would take about {needed / 1e9:.1f} GB, not {limit_bytes / 1e9:.1f} GB"
        batch, before = 2 * batch, batch


def numbers(field: str, text: str, most: int) -> list[int]:
    """Whole numbers from 1, separated by commas, ascending. Raises DeviceError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= most for part in parts):
        auto = "auto or " if field == "batch" else ""
        raise DeviceError(bad(field, text, f"{auto}whole numbers from 1 to {most}, separated by commas"))
    return sorted({int(part) for part in parts})


def table(result: BenchResult) -> str:
    """The result for people: a line for each measurement, in aligned columns."""
    rows = [
        ["actors", "batch", "size", "s/step", "U-Net", "cls_forward", "cls_backward", "rest", "images/s", "peak_MB"]
    ]
    for p in (*result.batches, *result.sizes, *result.actors):
        seconds = (f"{value:.4f}" for value in (p.seconds_a_step, *astuple(p.split)))
        rate, memory = f"{p.images_per_second:.3f}", f"{p.peak_bytes / 1e6:,.0f}"
        rows.append([str(p.actors), str(p.batch), str(p.image_size), *seconds, rate, memory])
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    model = f"{result.preset}, {result.precision} (here {result.dtype}), compile {result.compile}, {result.steps} steps"
    place = "{device}, {cores} cores, {threads} threads used, torch {torch}, {date}".format(**result.machine)
    best = [f"batch = {result.best}", f"  ({result.reason})"] if result.best else []
    return "\n".join([f"{model}, weights {result.weights}", place, *lines, *best])
