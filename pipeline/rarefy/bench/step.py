"""One guided step, timed in its parts while the sampler takes it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from rarefy.bench.memory import reset_peak
from rarefy.diffusion.sampler import Chain, Sample, image_noise, networks_of, reverse_chain
from rarefy.guidance.base import ClassifierTerm, Networks, NetworkTerm, StepState
from rarefy.guidance.guide import Guide
from rarefy.models.load import Models

LEAST, MOST, ENOUGH_S = 3, 20, 2.0  # steps measured: at least, at most, and seconds after which no more begins
WARM_UP = {"cpu": 1, "cuda": 3}  # a CUDA graph is recorded by the second call


@dataclass(frozen=True)
class Split:
    """Seconds of one step. terms: of those that call networks themselves; rest: guidance arithmetic, noise, update."""

    unet: float
    classifier_forward: float
    classifier_backward: float
    rest: float
    terms: float

    @property
    def step(self) -> float:
        """Seconds of the whole step."""
        return self.unet + self.classifier_forward + self.classifier_backward + self.terms + self.rest


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
        terms = self._between("terms", "terms end")
        rest = self._between("step", "step end") - unet - forward - backward - terms
        self._moments, self._events = {}, {}
        return Split(unet, forward, backward, rest, terms)

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
    everywhere = [
        replace(term, window=None, every=1) if isinstance(term, NetworkTerm) else replace(term, window=None)
        for term in chain.terms
    ]
    return replace(chain, terms=everywhere, classifier_every=1)


def classifier_passes(chain: Chain) -> int:
    """How many of the chain's steps call the classifier, found by walking it with one pixel."""
    calls = 0

    def classify(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x.flatten(1).repeat(1, 2)

    x_T, y = torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64)
    guided = replace(chain, terms=[term for term in chain.terms if isinstance(term, ClassifierTerm)])
    for _ in reverse_chain(Networks(lambda x, t, y: x, classify), guided, x_T, y, lambda _: x_T):
        pass
    return calls


def network_term_share(chain: Chain) -> float:
    """The mean share of the chain's steps at which its network terms act; 0 where it has none."""
    terms = [term for term in chain.terms if isinstance(term, NetworkTerm)]
    steps = list(enumerate(chain.schedule.timesteps.tolist()))
    acts = sum(term.due(step, t) for term in terms for step, t in steps)
    return acts / (len(steps) * max(len(terms), 1))


@dataclass(frozen=True, kw_only=True)
class _Timed(NetworkTerm):
    """Network terms as one, timed. networks: their own, whose calls are no part of the step's other times."""

    inner: tuple[NetworkTerm, ...]
    networks: Networks
    clock: StepClock

    def gradient(self, state: StepState, networks: Networks) -> Tensor:
        self.clock.mark("terms")
        gradient = Guide(self.inner, self.networks)(state)
        self.clock.mark("terms end")
        return torch.zeros_like(state.x_t) if gradient is None else gradient


def _timed_terms(chain: Chain, networks: Networks, clock: StepClock) -> Chain:
    inner = tuple(term for term in chain.terms if isinstance(term, NetworkTerm))
    if not inner:
        return chain
    others = [term for term in chain.terms if not isinstance(term, NetworkTerm)]
    return replace(chain, terms=[*others, _Timed(inner=inner, networks=networks, clock=clock)])


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
    plain = networks_of(models, range(batch))
    chain = _timed_terms(chain, plain, clock)
    y = torch.arange(batch, device=models.device) % models.preset.classifier_classes

    def denoise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        clock.mark("unet")
        output = plain.denoise(x, t, y)
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

    noise = image_noise(models, range(batch))
    while True:
        yield from reverse_chain(Networks(denoise, classify), chain, noise(-1), y, noise)
