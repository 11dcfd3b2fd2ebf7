"""The training loop of both networks: learning rate, gradient clipping, EMA, reports and checkpoints.

Under ``torchrun``, each process takes its share of every batch and DistributedDataParallel averages the gradients.
"""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rarefy.errors import RarefyError
from rarefy.execution import has_bfloat16, prepare
from rarefy.images import LabelledImages
from rarefy.models.adm import ADM
from rarefy.training.data import Batch, dropout_seed, make_batch, place
from rarefy.training.recipe import TrainSettings

REPORT_EVERY_S = 10.0
CHECKPOINT_EVERY_S = 180.0

LossFunction = Callable[[nn.Module, Batch], dict[str, Tensor]]
"""A network and a batch -> named scalars; ``loss`` is minimised, the others are logged."""


class DivergedError(RarefyError):
    """Training whose loss, gradients or weights are no longer finite."""


@dataclass(eq=False)
class TrainState:
    """Everything that a resumed run needs.

    model: the network; replica: what a step calls, the network itself or its DistributedDataParallel wrapper; ema: the
    moving average of the network's state dict.
    """

    model: nn.Module
    replica: nn.Module
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        weights = self.model.state_dict()
        self._weights = [weights[name] for name in self.ema]  # shares the model's memory

    def update_ema(self, decay: float) -> None:
        """Move the average towards the weights."""
        torch._foreach_lerp_(list(self.ema.values()), self._weights, 1 - decay)

    def is_finite(self) -> bool:
        """Whether all weights and averages are finite."""
        return bool(nn.utils.get_total_norm([*self._weights, *self.ema.values()]).isfinite())

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically: a kill leaves the previous one intact."""
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
    """Mean losses since the last report; saved: whether a checkpoint was just written."""

    step: int
    images_per_s: float
    lr: float
    saved: bool
    means: dict[str, float]


@dataclass
class _Window:
    """The losses of each step since the last report."""

    started: float = field(default_factory=time.monotonic)
    names: list[str] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def add(self, losses: dict[str, Tensor]) -> None:
        self.names = list(losses)
        self.rows.append(torch.stack([value.detach() for value in losses.values()]))

    def means(self, state: TrainState) -> dict[str, float]:
        """Means over steps and processes. Raises DivergedError if a loss or a weight is not finite.

        That is checked here, before each checkpoint, and not after each step, which would have to wait for the GPU.
        """
        table = torch.stack(self.rows).cpu()
        if dist.is_initialized():
            dist.all_reduce(table)
            table /= place()[1]
        finite = table.isfinite().all(1).tolist()
        if not all(finite) or not state.is_finite():
            row = finite.index(False) if False in finite else len(finite) - 1
            values = ", ".join(f"{name} {value:g}" for name, value in zip(self.names, table[row].tolist(), strict=True))
            cause = "training diverged" if False in finite else "training diverged, the weights are not finite"
            raise DivergedError(
                f"train: {cause} at step {state.step - len(finite) + row + 1} ({values}); "
                "the last checkpoint is kept; lower train.lr"
            )
        return dict(zip(self.names, table.mean(0).tolist(), strict=True))


def start(network: ADM, settings: TrainSettings, device: torch.device, checkpoint: Path) -> TrainState:
    """The state to train from: the checkpoint's if it exists, else rank 0's initial weights."""
    prepare(network, device, "exact", "auto", batch=0).train()
    # DDP mistakes the strides of 1x1 convolutions for another memory order.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    replica = DistributedDataParallel(network) if dist.is_initialized() else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    ema = {name: value.detach().clone() for name, value in network.state_dict().items()}
    state = TrainState(network, replica, ema, optimizer)
    if checkpoint.exists():
        state.load(checkpoint)
    return state


def train(
    state: TrainState, loss_function: LossFunction, data: LabelledImages, settings: TrainSettings, checkpoint: Path
) -> Iterator[Report]:
    """Train to ``settings.images``. Reports every 10 s; writes a checkpoint every 3 minutes and at the end.

    On Ctrl-C and SIGTERM it finishes the step, writes a checkpoint and raises KeyboardInterrupt with the signal's
    number. If losses or weights are no longer finite, raises DivergedError and keeps the last checkpoint.
    """
    window, saved_at = _Window(), time.monotonic()
    with _signals_noted() as signals:
        while state.step < settings.steps:
            window.add(train_step(state, loss_function, data, settings))
            now = time.monotonic()
            signal_number, due = _agree(max(signals, default=0), now - window.started >= REPORT_EVERY_S)
            last = state.step == settings.steps or signal_number > 0
            if not due and not last:
                continue
            means = window.means(state)
            state.seconds += now - window.started
            save = now - saved_at >= CHECKPOINT_EVERY_S or last
            if save:
                saved_at = now
                if place()[0] == 0:
                    state.save(checkpoint)
            if signal_number:
                _agree()  # torchrun ends all processes as soon as one has ended: wait for the checkpoint
                raise KeyboardInterrupt(signal_number)
            speed = len(window.rows) * settings.batch / (now - window.started)
            yield Report(state.step, speed, settings.lr_at(state.step - 1), save, means)
            window = _Window()


def _agree(*values: int) -> list[int]:
    """The maximum of each value over all processes, so that all of them do the same."""
    votes = torch.tensor([0, *values])
    if dist.is_initialized():
        dist.all_reduce(votes, dist.ReduceOp.MAX)
    agreed: list[int] = votes[1:].tolist()
    return agreed


@contextmanager
def _signals_noted() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the current step is finished first. A second signal stops at once.

    Under torchrun a second signal is only collected too: torchrun forwards signals that the processes already received.
    """
    noted: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        if not dist.is_initialized():
            restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        restore()


def train_step(
    state: TrainState, loss_function: LossFunction, data: LabelledImages, settings: TrainSettings
) -> dict[str, Tensor]:
    """One optimiser step; returns its losses and the gradient norm before clipping."""
    device = next(state.model.parameters()).device
    batch = make_batch(data, state.step, settings, device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(dropout_seed(state.step, settings))
        losses = backward(state.replica, loss_function, batch, settings.precision)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip, foreach=True)
    for group in state.optimizer.param_groups:
        group["lr"] = settings.lr_at(state.step)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.update_ema(min(settings.ema, (1 + state.step) / (10 + state.step)))
    state.step += 1
    return {**losses, "grad_norm": grad_norm}


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of a step's matrix products. precision: as in TrainSettings."""
    return torch.bfloat16 if precision == "bfloat16" and has_bfloat16(device) else torch.float32


def backward(model: nn.Module, loss_function: LossFunction, batch: Batch, precision: str) -> dict[str, Tensor]:
    """Add a batch's gradients to the parameters' gradients; returns its losses. precision: as in TrainSettings."""
    device = batch.x_0.device
    reduced = training_dtype(precision, device) == torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        losses = loss_function(model, batch)
    losses["loss"].backward()
    return losses
