"""One optimiser step: micro-batches, gradients, clipping, the moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rarefy.execution import has_bfloat16
from rarefy.training.data import Batch, dropout_seed
from rarefy.training.settings import TrainSettings
from rarefy.training.state import TrainState

LossFunction = Callable[[nn.Module, Batch], dict[str, Tensor]]
"""A network and a batch -> named scalars; ``loss`` is minimised, the others are logged."""


def train_step(
    state: TrainState, loss_function: LossFunction, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """One optimiser step on this process's share of a batch; returns its losses and the gradient norm before clipping.

    The losses of micro-batches are averaged, so their number changes the result by rounding alone.
    """
    with torch.random.fork_rng([state.device] if state.device.type == "cuda" else []), tf32(settings.precision):
        torch.manual_seed(dropout_seed(state.step, settings))
        losses = accumulate(state.replica, loss_function, batch, settings)
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), settings.clip, foreach=True)
    for group in state.optimizer.param_groups:
        group["lr"] = settings.lr_at(state.step)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.update_ema(min(settings.ema_decay, (1 + state.step) / (10 + state.step)))
    state.step += 1
    return {**losses, "grad_norm": grad_norm}


def accumulate(
    model: nn.Module, loss_function: LossFunction, batch: Batch, settings: TrainSettings
) -> dict[str, Tensor]:
    """Add the gradients of a batch's mean loss, one micro-batch at a time; returns the mean losses."""
    count = settings.accumulate
    if count == 1:
        return backward(model, loss_function, batch, settings.precision)
    totals: dict[str, Tensor] = {}
    for number, part in enumerate(batch.parts(count), start=1):
        with _synchronised(model, number == count):
            losses = backward(model, loss_function, part, settings.precision, 1 / count)
        totals = {name: totals.get(name, 0) + value.detach() / count for name, value in losses.items()}
    return totals


def _synchronised(model: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Processes exchange gradients once per step, with the last micro-batch."""
    context: AbstractContextManager[None] = nullcontext()
    if isinstance(model, DistributedDataParallel) and not last:
        context = model.no_sync()
    return context


def backward(
    model: nn.Module, loss_function: LossFunction, batch: Batch, precision: str, weight: float = 1.0
) -> dict[str, Tensor]:
    """Add ``weight`` times a batch's gradients to those of the parameters; returns its losses.

    precision: as in TrainSettings.
    """
    device = batch.x_0.device
    reduced = training_dtype(precision, device) == torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=reduced):
        losses = loss_function(model, batch)
    (losses["loss"] * weight).backward()
    return losses


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of a step's matrix products. precision: as in TrainSettings."""
    return torch.bfloat16 if precision == "bfloat16" and has_bfloat16(device) else torch.float32


@contextmanager
def tf32(precision: str) -> Iterator[None]:
    """Allow GPUs to round float32 matrix products to 10 bits (TF32) only if ``precision`` says so."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
