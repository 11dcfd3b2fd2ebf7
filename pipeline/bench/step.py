"""One guided step, timed in its parts while the sampler takes it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from pipeline.bench.memory import reset_peak
from pipeline.diffusion.guidance import Term
from pipeline.diffusion.sampler import Chain, ImageNoise, Sample, denoiser, reverse_chain
from pipeline.models.catalog import Models

LEAST, MOST, ENOUGH_S = 3, 20, 2.0  # steps measured: at least, at most, and seconds after which no more begins
WARM_UP = {"cpu": 1, "cuda": 3}  # a CUDA graph is recorded by the second call


@dataclass(frozen=True)
class Split:
    """Seconds of one step. rest: guidance arithmetic, noise, update."""

    unet: float
    classifier_forward: float
    classifier_backward: float
    rest: float

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return self.unet + self.classifier_forward + self.classifier_backward + self.rest


class StepClock:
    """Named moments of one step.

    On a CPU: this process's CPU seconds where torch has one thread, which other programs do not disturb, else wall
    seconds. On a GPU: events in its queue, so that nothing waits for being timed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        self._moments: dict[str, float] = {}
        self._events: dict[str, torch.cuda.Event] = {}

    def mark(self, name: str) -> None:
        """This moment is ``name``."""
        if self.device.type == "cuda":
            self._events[name] = torch.cuda.Event(enable_timing=True)
            self._events[name].record(torch.cuda.current_stream(self.device))
        else:
            self._moments[name] = self._now()

    def split(self) -> Split:
        """What the moments of the step that has ended say; begins the next."""
        unet = self._between("unet", "unet end")
        forward, backward = self._between("classifier", "classifier end"), self._between("backward", "backward end")
        rest = self._between("step", "step end") - unet - forward - backward
        self._moments, self._events = {}, {}
        return Split(unet, forward, backward, rest)

    def _between(self, first: str, second: str) -> float:
        """Seconds; 0 where the step has no such part."""
        if self.device.type == "cuda":
            if second not in self._events:
                return 0.0
            self._events[second].synchronize()
            milliseconds: float = self._events[first].elapsed_time(self._events[second])
            return milliseconds / 1000
        return self._moments[second] - self._moments[first] if second in self._moments else 0.0


def full_steps(chain: Chain) -> Chain:
    """The chain with every term at every step and a classifier pass at each: what its dearest step does."""
    terms: list[Term] = [replace(term, window=None) for term in chain.terms]
    return replace(chain, terms=terms, classifier_every=1)


def classifier_passes(chain: Chain) -> int:
    """How many of the chain's steps call the classifier, found by walking it with one pixel."""
    calls = 0

    def classify(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x.flatten(1).repeat(1, 2)

    x_T = torch.zeros(1, 1, 1, 1)
    for _ in reverse_chain(lambda x, t, y: x, classify, chain, x_T, torch.zeros(1, dtype=torch.int64), lambda _: x_T):
        pass
    return calls


def time_step(models: Models, chain: Chain, batch: int) -> Split:
    """Medians of each part over some steps of the chain, every class in the batch in its turn.

    The peak of memory begins anew behind the warm-up, which may compile.
    """
    device = models.device
    clock = StepClock(device)
    steps = endless_steps(models, chain, batch, clock)
    for _ in range(WARM_UP[device.type]):
        next(steps)
        clock.split()
    reset_peak(device)
    splits: list[Split] = []
    start = time.monotonic()
    while len(splits) < LEAST or (len(splits) < MOST and time.monotonic() - start < ENOUGH_S):
        clock.mark("step")
        next(steps)
        clock.mark("step end")
        splits.append(clock.split())
    return Split(*(statistics.median(getattr(split, part.name) for split in splits) for part in fields(Split)))


def endless_steps(models: Models, chain: Chain, batch: int, clock: StepClock) -> Iterator[Sample]:
    """Step after step, from chain to chain, each marked on ``clock``; its beginning and end are the caller's."""
    preset, unet = models.preset, denoiser(models.unet)
    y = torch.arange(batch, device=models.device) % preset.classifier_classes

    def denoise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        clock.mark("unet")
        output = unet(x, t, y)
        clock.mark("unet end")
        return output

    def classify(x: Tensor, t: Tensor) -> Tensor:
        x = x.view_as(x)
        x.register_hook(lambda _: clock.mark("backward end"))
        clock.mark("classifier")
        logits: Tensor = models.classifier(x, t)
        clock.mark("classifier end")
        logits.register_hook(lambda _: clock.mark("backward"))
        return logits

    noise = ImageNoise(range(batch), (preset.channels, preset.image_size, preset.image_size), models.device)
    while True:
        yield from reverse_chain(denoise, classify, chain, noise(-1), y, noise)
