"""The training loop of all networks: steps, reports, checkpoints, signals.

Under ``torchrun``, each process takes its share of every batch and DistributedDataParallel averages the gradients.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from rarefy.errors import RarefyError
from rarefy.training.data import TrainingSet, place
from rarefy.training.loader import Loader
from rarefy.training.settings import TrainSettings
from rarefy.training.state import TrainState
from rarefy.training.step import LossFunction, train_step

REPORT_EVERY_S = 10.0
CHECKPOINT_EVERY_S = 180.0


class DivergedError(RarefyError):
    """Training whose loss, gradients or weights are no longer finite."""


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
                "the last checkpoint is kept; lower lr"
            )
        return dict(zip(self.names, table.mean(0).tolist(), strict=True))


def train(
    state: TrainState, loss_function: LossFunction, data: TrainingSet, settings: TrainSettings, checkpoint: Path
) -> Iterator[Report]:
    """Train to ``settings.images``. Reports every 10 s; writes a checkpoint every 3 minutes and at the end.

    On Ctrl-C and SIGTERM it finishes the step, writes a checkpoint and raises KeyboardInterrupt with the signal's
    number. If losses or weights are no longer finite, raises DivergedError and keeps the last checkpoint.
    """
    window, saved_at = _Window(), time.monotonic()
    with _signals_noted() as signals, Loader(data, settings, state.device) as loader:
        for batch in loader.batches(state.step):
            window.add(train_step(state, loss_function, batch, settings))
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
