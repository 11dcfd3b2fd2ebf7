"""The training loop that both networks share: batches, learning rate, EMA, atomic checkpoints.

Every random number of step k comes from (seed, k, rank), so a run resumed after a kill continues as if it had not
stopped. Started by ``torchrun``, each process takes its share of every batch and the gradients are averaged.
"""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from rarefy.fast.precision import has_bfloat16, to_device
from rarefy.images import LabelledImages


@dataclass(frozen=True)
class TrainSettings:
    """What changes the weights, beside data and network.

    images: training images to see in all; batch: images a step; lr: learning rate after a rise over ``warmup`` images,
    held, then falling linearly to zero over the last ``decay`` share of the run; ema: decay of the weight average a
    step; clip: largest gradient norm; precision: bfloat16 (autocast, where the device multiplies it) or float32.
    """

    images: int
    batch: int = 128
    lr: float = 3e-4
    weight_decay: float = 0.0
    warmup: int = 20_000
    decay: float = 0.15
    ema: float = 0.9995
    clip: float = 1.0
    seed: int = 0
    precision: str = "bfloat16"

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return -(-self.images // self.batch)

    def lr_at(self, step: int) -> float:
        """Learning rate of a step: rise, plateau, linear fall."""
        rise = (step + 1) * self.batch / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.decay * self.steps, 1e-9)
        return self.lr * min(rise, 1.0, fall)


@dataclass(frozen=True, eq=False)
class Batch:
    """x_0: (B, C, H, W) float32 in [-1, 1]; y: (B,) int64; generator: this step's random numbers."""

    x_0: Tensor
    y: Tensor
    generator: torch.Generator


LossFunction = Callable[[nn.Module, Batch], dict[str, Tensor]]


@dataclass(eq=False)
class TrainState:
    """Everything that a resumed run needs."""

    model: nn.Module
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        weights = self.model.state_dict()
        self._weights = [weights[name] for name in self.ema]  # the model's own memory

    def update_ema(self, decay: float) -> None:
        """Move the average towards the weights."""
        torch._foreach_lerp_(list(self.ema.values()), self._weights, 1 - decay)

    def save(self, path: Path) -> None:
        """Write atomically: a kill leaves the last whole checkpoint."""
        temporary = path.with_suffix(".tmp")
        content = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(content, temporary)
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Read what :meth:`save` wrote."""
        saved = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(saved["model"])
        for name, value in saved["ema"].items():
            self.ema[name].copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]


@dataclass(frozen=True, eq=False)
class Report:
    """Means since the last report; ``saved`` where a checkpoint was written just before it."""

    step: int
    images_per_s: float
    lr: float
    saved: bool
    means: dict[str, float]


@dataclass
class _Window:
    """Sums over the steps since the last report."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, losses: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in losses.items():
            detached = value.detach()
            self.sums[name] = self.sums[name] + detached if name in self.sums else detached

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.steps for name, total in self.sums.items()}


def place() -> tuple[int, int]:
    """(rank, world size) of this process; (0, 1) where training is not distributed."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def batch_rows(step: int, batch: int, count: int, seed: int) -> NDArray[np.int64]:
    """Rows of a step's batch: consecutive slices of a fresh permutation an epoch."""
    position = np.arange(step * batch, (step + 1) * batch)
    epochs, offsets = position // count, position % count
    rows = np.empty(batch, np.int64)
    for epoch in np.unique(epochs):
        rows[epochs == epoch] = _order(seed, int(epoch), count)[offsets[epochs == epoch]]
    return rows


@functools.lru_cache(maxsize=2)  # a batch may lie in two epochs
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(count)


def make_batch(data: LabelledImages, step: int, settings: TrainSettings, device: torch.device) -> Batch:
    """This process's share of a step's batch, the same whenever it is asked for."""
    rank, world = place()
    rows = batch_rows(step, settings.batch, len(data), settings.seed)[rank::world]
    x_0 = torch.from_numpy(data.images[rows]).to(device).float() / 127.5 - 1
    generator = torch.Generator(device=device).manual_seed((settings.seed << 32) + step * world + rank)
    return Batch(x_0, torch.from_numpy(data.labels[rows]).to(device), generator)


def at_step(table: Tensor, k: Tensor) -> Tensor:
    """Entries of a schedule table, shaped to multiply images. table: (S,); k: (B,) -> (B, 1, 1, 1)."""
    return table[k][:, None, None, None]


def start(model: nn.Module, settings: TrainSettings, device: torch.device, checkpoint: Path) -> TrainState:
    """The state to train from: the checkpoint's where it exists."""
    to_device(model, device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    ema = {name: value.detach().clone() for name, value in model.state_dict().items()}
    state = TrainState(model, ema, optimizer)
    if checkpoint.exists():
        state.load(checkpoint)
    return state


def train(
    state: TrainState, loss_function: LossFunction, data: LabelledImages, settings: TrainSettings, checkpoint: Path
) -> Iterator[Report]:
    """Train to ``settings.images``. Reports every 10 s; a checkpoint every 3 minutes, on Ctrl-C and at the end."""
    window, saved_at = _Window(), time.monotonic()
    with _interrupt_noted() as interrupts:
        while state.step < settings.steps:
            window.add(train_step(state, loss_function, data, settings))
            now = time.monotonic()
            last = state.step == settings.steps or bool(interrupts)
            if now - window.started < REPORT_EVERY_S and not last:
                continue
            state.seconds += now - window.started
            save = now - saved_at >= CHECKPOINT_EVERY_S or last
            if save:
                saved_at = now
                if place()[0] == 0:
                    state.save(checkpoint)
            if interrupts:
                raise KeyboardInterrupt
            speed = window.steps * settings.batch / (now - window.started)
            yield Report(state.step, speed, settings.lr_at(state.step - 1), save, window.means())
            window = _Window()


REPORT_EVERY_S = 10.0
CHECKPOINT_EVERY_S = 180.0


@contextmanager
def _interrupt_noted() -> Iterator[list[int]]:
    """Let the step under way finish on Ctrl-C, so that no half-updated weights are saved; a second one stops at once.

    Yields a list that is empty until the signal comes.
    """
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def train_step(
    state: TrainState, loss_function: LossFunction, data: LabelledImages, settings: TrainSettings
) -> dict[str, Tensor]:
    """One optimiser step; returns its losses and gradient norm."""
    device = next(state.model.parameters()).device
    batch = make_batch(data, state.step, settings, device)
    losses = backward(state.model, loss_function, batch, settings.precision)
    _average_gradients(state.model)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip, foreach=True)
    for group in state.optimizer.param_groups:
        group["lr"] = settings.lr_at(state.step)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.update_ema(min(settings.ema, (1 + state.step) / (10 + state.step)))
    state.step += 1
    return {**losses, "grad_norm": grad_norm}


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What most products of a step are in. precision: as in TrainSettings."""
    return torch.bfloat16 if precision == "bfloat16" and has_bfloat16(device) else torch.float32


def backward(model: nn.Module, loss_function: LossFunction, batch: Batch, precision: str) -> dict[str, Tensor]:
    """Add a batch's gradients to the parameters'; returns its losses. precision: as in TrainSettings."""
    device = batch.x_0.device
    reduced = training_dtype(precision, device) == torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        losses = loss_function(model, batch)
    losses["loss"].backward()
    return losses


def _average_gradients(model: nn.Module) -> None:
    """Replace every gradient by its mean over the processes."""
    world = place()[1]
    if world == 1:
        return
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads]) / world
    dist.all_reduce(flat)
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view(grad.shape))
