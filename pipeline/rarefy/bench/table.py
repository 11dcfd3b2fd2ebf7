"""A bench's numbers as lines for people."""

from __future__ import annotations

from collections.abc import Sequence

from rarefy.bench.bench import BenchResult, Point
from rarefy.bench.memory import MARGIN
from rarefy.fast.precision import OUR_OWN

_PARTS = ("batch", "s/step", "U-Net", "cls forward", "cls backward", "terms", "rest")
_SPEEDS = ("U-Net GFLOP/s", "of ceiling", "cls GFLOP/s", "of ceiling")


def table(result: BenchResult) -> str:
    """All of a result, in aligned columns; cls is the classifier."""
    rows = [(*_PARTS, *_SPEEDS, "images/s", "peak MB"), *(_row(p, result.ceiling_gflops) for p in result.batches)]
    return "\n".join([*_about(result), "", *_aligned(rows), *_best(result), *_sizes(result), *_actors(result)])


def _about(result: BenchResult) -> list[str]:
    flops, place = result.flops, result.machine
    unet, forward, backward = (
        f"{count / 1e9:.3g}" for count in (flops.unet, flops.classifier_forward, flops.classifier_backward)
    )
    own = result.kernels == OUR_OWN
    return [
        f"{result.preset}, {result.precision} (here {result.dtype}), weights {result.weights}",
        f"compile {result.compile}: {result.kernels} kernels",
        f"{result.method}, {result.steps} steps, {result.classifier_passes} of them with a classifier pass, "
        f"guidance {' + '.join(result.guidance) or 'none'}",
        f"{place['device']}, {place['cores']} cores, {place['threads']} threads used, torch {place['torch']}, "
        f"{place['date']}",
        f"GFLOP an image and step: U-Net {unet}, classifier forward {forward}, backward {backward}",
        f"ceiling: {result.ceiling_gflops:,.0f} GFLOP/s, a matrix product or torch's 3x3 convolution in {result.dtype}",
        *(["  (our own convolutions need fewer operations than are counted, and may pass it)"] if own else []),
        f"weights in memory: {_megabytes(result.weights_bytes)} MB",
    ]


def _row(point: Point, ceiling: float) -> tuple[str, ...]:
    split = point.split
    classifier = split.classifier_forward, split.classifier_backward
    seconds = (f"{value:.4f}" for value in (point.seconds_a_step, split.unet, *classifier, split.terms, split.rest))
    speed = f"{point.images_per_second:.3f}"
    return (str(point.batch), *seconds, *_speeds(point, ceiling), speed, _megabytes(point.peak_bytes))


def _best(result: BenchResult) -> list[str]:
    if result.best is None:
        return []
    limit = f"memory limit {result.limit_bytes / 1e9:.1f} GB: {MARGIN:.0%} of what is free, on the CPU a share a core"
    return ["", f"batch = {result.best.batch}", f"  ({result.best.reason}; {limit})"]


def _sizes(result: BenchResult) -> list[str]:
    if not result.sizes:
        return []
    rows = [("image size", "s/step", "times", *_SPEEDS)]
    for point in result.sizes:
        times = point.seconds_a_step / result.sizes[0].seconds_a_step
        cells = (str(point.image_size), f"{point.seconds_a_step:.4f}", f"{times:.2f}")
        rows.append((*cells, *_speeds(point, result.ceiling_gflops)))
    title = f"growth with image size, batch {result.sizes[0].batch}, random weights of the same widths:"
    return ["", title, *_aligned(rows)]


def _actors(result: BenchResult) -> list[str]:
    if not result.actors:
        return []
    rows = [("actors", "images/s", "times")]
    for point in result.actors:
        times = point.images_per_second / result.actors[0].images_per_second
        rows.append((str(point.actors), f"{point.images_per_second:.3f}", f"{times:.2f}"))
    return ["", "growth with actors, in wall time:", *_aligned(rows)]


def _speeds(point: Point, ceiling: float) -> tuple[str, str, str, str]:
    unet, classifier = point.unet_gflops, point.classifier_gflops
    return f"{unet:,.0f}", f"{unet / ceiling:.0%}", f"{classifier:,.0f}", f"{classifier / ceiling:.0%}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f}"
