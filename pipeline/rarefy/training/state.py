"""The state of a training run: network, moving average, optimiser, and the checkpoint that holds them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from rarefy.errors import CheckpointError
from rarefy.execution import prepare
from rarefy.models.adm import ADM
from rarefy.models.blocks import AttentionBlock, ResBlock
from rarefy.models.checkpoint import UNREADABLE, first_line
from rarefy.training.settings import TrainSettings


@dataclass(eq=False)
class TrainState:
    """Everything that a resumed run needs.

    model: the network; replica: what a step calls, the network itself or its DistributedDataParallel or compiled form;
    ema: the moving average of the network's state dict.
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

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.model.parameters()).device

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
        """Read what :meth:`save` wrote, never executing anything in it. Raises CheckpointError for another file."""
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(saved["model"])
            for name, value in saved["ema"].items():
                self.ema[name].copy_(value)
            self.optimizer.load_state_dict(saved["optimizer"])
            self.step, self.seconds = int(saved["step"]), float(saved["seconds"])
        except torch.OutOfMemoryError:  # of a GPU: not the file's fault
            raise
        except UNREADABLE as error:
            wrong = f"{str(path)!r} is not the checkpoint of this training ({first_line(error)})"
            raise CheckpointError(f"training: {wrong}; move it away to begin again") from error


def start(
    network: ADM, settings: TrainSettings, device: torch.device, saved: Path, compile: str = "auto"
) -> TrainState:
    """The state to train from: that of the checkpoint ``saved`` if it exists, else rank 0's initial weights.

    compile: as in :func:`rarefy.execution.prepare`; ``full`` compiles the whole step's network.
    """
    prepare(network, device, "exact", compile, batch=0).train()
    if settings.checkpointing:
        recompute_activations(network)
    # DDP mistakes the strides of 1x1 convolutions for another memory order.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    replica: nn.Module = DistributedDataParallel(network) if dist.is_initialized() else network
    if compile == "full":
        replica.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
    ema = {name: value.detach().clone() for name, value in network.state_dict().items()}
    state = TrainState(network, replica, ema, optimizer)
    if saved.exists():
        state.load(saved)
    return state


def recompute_activations(network: nn.Module) -> None:
    """Keep only the inputs of residual and attention blocks; the backward pass computes the rest again, in place."""
    for module in network.modules():
        if isinstance(module, ResBlock | AttentionBlock):
            module.__dict__["forward"] = _Recomputed(module)


class _Recomputed:
    """A block's forward pass under activation checkpointing."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *arguments: Tensor | None) -> Tensor:
        output: Tensor = checkpoint(type(self.block).forward, self.block, *arguments, use_reentrant=False)
        return output
