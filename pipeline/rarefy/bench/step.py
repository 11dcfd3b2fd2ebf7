"""A model's guided steps, timed in their parts while the sampler takes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import torch
from torch import nn

from rarefy.bench.measure import clock
from rarefy.device import reset_peak
from rarefy.diffusion.sampler import Chain, Sample, image_noise, networks_of, reverse_chain
from rarefy.execution import load_prepared, prepare
from rarefy.models.folder import ModelFolder
from rarefy.models.load import Models
from rarefy.models.networks import build_network
from rarefy.models.source import ModelSpec

WARM_UP, MIN_STEPS, MAX_STEPS, ENOUGH_S = 3, 4, 20, 2.0  # on a GPU the first steps record the networks


@dataclass(frozen=True)
class Execution:
    """How networks run; precision and compile as in :func:`rarefy.execution.prepare`."""

    device: str = "cpu"
    precision: str = "exact"
    compile: str = "auto"


@dataclass(frozen=True)
class Split:
    """Mean seconds of one step: the networks, and the rest (noise, arithmetic, terms that differentiate the U-Net)."""

    unet: float
    classifier_forward: float
    classifier_backward: float
    rest: float


def load(preset: ModelFolder, spec: ModelSpec | None, execution: Execution, batch: int) -> Models:
    """A model prepared for batches of one size; its weights are random, which takes the same time, without its files.

    Raises CheckpointError for files that do not fit, DeviceError.
    """
    device, how = torch.device(execution.device), (execution.precision, execution.compile, batch)
    if spec and spec.trained:
        hashes = spec.checkpoint_sha256, spec.classifier_sha256
        return load_prepared(preset, spec.checkpoint, spec.classifier, hashes, device, *how)
    unet = build_network(preset.unet, "unet", preset.allow_plugins)
    if preset.classifier is None:
        models = Models(preset, unet, None, "random", None)
    else:
        classifier = build_network(preset.classifier, "classifier", preset.allow_plugins)
        models = Models(preset, unet, classifier, "random", "random")
    for network in _networks(models).values():
        prepare(network.eval().requires_grad_(False), device, *how)
    return models


def _networks(models: Models) -> dict[str, nn.Module]:
    """The model's networks, by the part of a step that runs them."""
    networks: dict[str, nn.Module] = {"unet": models.unet}
    if models.classifier is not None:
        networks["forward"] = models.classifier
    return networks


def guided_steps(models: Models, chain: Chain, seeds: Sequence[int]) -> Iterator[Sample]:
    """Step after step, from chain to chain, of one image per seed, with the classes in turn."""
    y = torch.arange(len(seeds), device=models.device) % models.preset.classifier_classes
    networks, noise = networks_of(models, seeds), image_noise(models, seeds)
    while True:
        yield from reverse_chain(networks, chain, noise(-1), y, noise)


def time_steps(models: Models, chain: Chain, batch: int, wall: bool) -> Split:
    """Mean over some steps that are spread evenly over the chain, so that windows of guidance weigh as in a run.

    The networks get hooks that stay. The memory peak starts anew after the warm-up, which may compile.
    """
    now, seconds = partial(clock, models.device, wall), defaultdict[str, float](float)

    def add(part: str, sign: int, *_: object) -> None:
        seconds[part] += sign * now()

    starts = [now() for _ in islice(guided_steps(models, chain, range(batch)), WARM_UP)]
    enough = round(ENOUGH_S / max(starts[-1] - starts[-2], 1e-6))
    count = min(max(MIN_STEPS, chain.classifier_every, enough), MAX_STEPS, len(chain.schedule))
    steps = guided_steps(models, replace(chain, schedule=chain.schedule.thinned(count)), range(batch))
    for part, network in _networks(models).items():
        network.register_forward_pre_hook(partial(add, part, -1))
        network.register_forward_hook(partial(add, part, 1))
    if models.classifier is not None:
        models.classifier.register_full_backward_pre_hook(partial(add, "backward", -1))
        models.classifier.register_full_backward_hook(partial(add, "backward", 1))
    reset_peak(models.device)
    start = now()
    for _ in range(count):
        next(steps)
    unet, forward, backward = (seconds[part] / count for part in ("unet", "forward", "backward"))
    return Split(unet, forward, backward, (now() - start) / count - unet - forward - backward)
