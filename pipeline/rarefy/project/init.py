"""``rarefy init``: looks at a folder of images and writes a project: two files, and the held-out images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rarefy.cores import usable_cores
from rarefy.errors import DataError, bad
from rarefy.fields import check_integer
from rarefy.generate.progress import duration
from rarefy.images import ClassNames, Inspection, LabelledImages, has_split, inspect_images, load_images
from rarefy.project.choices import Choices, few_images, plan_part
from rarefy.project.mirror import measure_mirror
from rarefy.project.networks import (
    Hardware,
    choose_size,
    choose_tier,
    classifier_config,
    find_hardware,
    largest_size,
    supported_size,
    unet_config,
)
from rarefy.project.speed import time_training
from rarefy.project.split import split_off
from rarefy.project.write import RARE_FILE, TRAIN_FILE, check_unused, write_project
from rarefy.training.settings import MAX_IMAGES, MAX_SEED

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class InitOptions:
    """data: the user's images; out: the project to write; test: a test set, instead of held-out images.

    size, images: the user's choices, None for rarefy's; held_out: fraction of each class, in (0, 0.5].
    """

    data: str
    out: str
    test: str | None = None
    size: int | None = None
    name: str | None = None
    images: int | None = None
    skip_broken: bool = False
    held_out: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class InitResult:
    """What was written. counts: images by class name; seconds: estimated time of training, by network."""

    out: str
    name: str
    image_size: int
    channels: int
    counts: dict[str, int]
    training: int
    held_out: int
    flip: bool
    to_make: int
    seconds: dict[str, float]
    warnings: list[str]


def init(options: InitOptions, say: Say, progress: Progress) -> InitResult:
    """Inspect the images, choose everything, and write the project completely or not at all.

    say: prints a paragraph for people; progress(stage, done, total). Raises DataError, OutputError, DeviceError.
    """
    _check(options)
    inspection = inspect_images(options.data, skip_broken=options.skip_broken, progress=_stage(progress, "images"))
    say(inspection.text())
    if options.test is None and has_split(options.data, "test"):
        say(f"The data has a test split, which is not used; --test {options.data} uses it.")
    hardware = find_hardware()
    tier = choose_tier(hardware, inspection.images)
    size, why = choose_size(_typical_side(inspection), options.size, largest_size(hardware, tier))
    say(f"Image size: {size} px, {why}.")
    classes = tuple(name for name, count in inspection.counts.items() if count)
    data = _load(options, "train", size, inspection.channels, classes, progress)
    rows, held_out, bare = _held_out(options, data, size, inspection.channels, progress)
    choices = _choose(options, data, rows, held_out, (size, why), hardware, progress)
    warnings = few_images(choices.counts, [data.class_names[k] for k in bare])
    write_project(choices, held_out, options.out)
    for line in (*_summary(choices), *(f"Warning: {line}." for line in warnings), *_next(options.out)):
        say(line)
    return InitResult(
        out=options.out,
        name=choices.name,
        image_size=size,
        channels=choices.channels,
        counts=dict(choices.counts),
        training=len(rows),
        held_out=len(held_out),
        flip=choices.mirror.flip,
        to_make=choices.to_make,
        seconds={part.name: round(part.seconds, 1) for part in choices.parts},
        warnings=warnings,
    )


def _check(options: InitOptions) -> None:
    check_unused(options.out, options.data)
    if not 0 < options.held_out <= 0.5:
        raise DataError(bad("held-out", options.held_out, "a fraction above 0 and at most 0.5"))
    if options.size is not None:
        supported_size(options.size)
    if options.images is not None:
        check_integer(options.images, "images", 1, MAX_IMAGES)
    check_integer(options.seed, "seed", 0, MAX_SEED)
    if options.name is not None and not (options.name and options.name.isprintable()):
        raise DataError(bad("name", options.name, "a name that can be printed"))


def _typical_side(inspection: Inspection) -> int:
    """Nine of ten images have at least this smaller side, in pixels."""
    sides = np.repeat([min(size) for size in inspection.sizes], list(inspection.sizes.values()))
    return int(np.quantile(sides, 0.1, method="lower"))


def _load(
    options: InitOptions, split: str, size: int, channels: int, classes: tuple[str, ...], progress: Progress
) -> LabelledImages:
    return load_images(
        options.data if split == "train" else options.test or options.data,
        size,
        channels,
        "test" if split == "test" and has_split(options.test or options.data, "test") else "train",
        classes=ClassNames(classes),
        skip_broken=options.skip_broken,
        progress=_stage(progress, f"decode {split} images"),
    )


def _held_out(
    options: InitOptions, data: LabelledImages, size: int, channels: int, progress: Progress
) -> tuple[NDArray[np.int64], LabelledImages, tuple[int, ...]]:
    """Rows to train on, the held-out images, and the classes that have none."""
    if options.test is None:
        split = split_off(data, options.held_out, options.seed)
        return split.train, data.take(split.held_out), split.bare
    same = Path(options.test).resolve() == Path(options.data).resolve()
    if same and not has_split(options.test, "test"):
        raise DataError(bad("test", options.test, "a test set: it is the training data, which has no test split"))
    test = _load(options, "test", size, channels, data.class_names, progress)
    present = set(test.labels.tolist())
    return np.arange(len(data)), test, tuple(k for k in range(len(data.class_names)) if k not in present)


def _choose(
    options: InitOptions,
    data: LabelledImages,
    rows: NDArray[np.int64],
    held_out: LabelledImages,
    size: tuple[int, str],
    hardware: Hardware,
    progress: Progress,
) -> Choices:
    tier, channels, classes = choose_tier(hardware, len(data)), data.images.shape[1], len(data.class_names)
    mirror = measure_mirror(data, rows, held_out, _stage(progress, "effect of mirroring"))
    unet, guide = (make(size[0], channels, classes, tier) for make in (unet_config, classifier_config))
    progress("time training steps", 0, 2)
    speeds = [time_training(network, tier.batch, hardware.device) for network in (unet, guide)]
    progress("time training steps", 2, 2)
    named = zip(("diffusion", "classifier", "judge"), (*speeds, speeds[1]), strict=True)
    counts = np.bincount(data.labels, minlength=classes)
    return Choices(
        name=options.name or Path(options.data).absolute().name,
        folder=Path(options.out).resolve().name,
        data=os.path.relpath(options.data, Path(options.out).resolve()),  # links to the data stay as they are
        skip_broken=options.skip_broken,
        counts=dict(zip(data.class_names, counts.tolist(), strict=True)),
        training=len(rows),
        held_out=len(held_out),
        test=options.test is not None,
        size=size[0],
        why_size=size[1],
        unet=unet,
        classifier=guide,
        tier=tier,
        hardware=hardware.name,
        mirror=mirror,
        parts=tuple(plan_part(name, len(rows), tier, speed, options.images) for name, speed in named),
        seed=options.seed,
    )


def _summary(choices: Choices) -> Iterator[str]:
    held_out = "the test set" if choices.test else f"held out, {choices.held_out:,} of {sum(choices.counts.values()):,}"
    yield f"Never trained on: {choices.held_out:,} images ({held_out}); the audit compares with them."
    yield f"Mirroring images in training is {choices.mirror.why}."
    yield f"Hardware: {choices.hardware}; {choices.tier.why}."
    load, cores = os.getloadavg()[0], usable_cores()
    if load > cores:
        yield f"Other programs keep this machine busy (load {load:.1f}, {cores} cores); without them, it trains faster."
    for part in choices.parts:
        network = "diffusion network" if part.name == "diffusion" else part.name
        yield (
            f"Training the {network}: {part.images:,} images at {part.speed.images_per_s:,.0f}/s, about "
            f"{duration(part.seconds)} ({part.why_images})."
        )
    if choices.fill:
        yield f"Rare images to make: {choices.to_make:,}, which fill {len(choices.fill):,} classes up to the largest."
    else:
        yield f"Rare images to make: {choices.to_make:,}, {choices.per_class:,} of each class."


def _next(out: str) -> Iterator[str]:
    yield f"Written: {out}. Read its two files, then:"
    yield f"  rarefy train {Path(out) / TRAIN_FILE}"
    yield f"  rarefy run {Path(out) / RARE_FILE} --out OUT"


def _stage(progress: Progress, name: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(name, done, total)
