"""How networks run on a device: the one door to :mod:`rarefy.fast`, and the switches of the whole process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from rarefy.fast.cpu.allocator import keep_freed_memory
from rarefy.fast.precision import COMPILES, PRECISIONS, execution_on, has_bfloat16, set_precision, set_up, to_device
from rarefy.models.adm import ADM

Network = TypeVar("Network", bound=ADM)

__all__ = ["COMPILES", "PRECISIONS", "check_execution", "has_bfloat16", "prepare", "repeatable"]


def check_execution(device: torch.device, precision: str, compile: str) -> None:
    """Raise DeviceError where this machine cannot run networks on such a device in such a way."""
    execution_on(device, precision, compile)


def prepare(
    network: Network, device: torch.device, precision: str = "exact", compile: str = "auto", batch: int = 0
) -> Network:
    """Move a network to a device, in place, and make it quick there; returns it.

    precision: ``exact`` is float32; ``fast`` is bfloat16 where the device multiplies it. compile: ``auto`` takes
    rarefy's own kernels where they can be had; ``off`` is plain PyTorch; ``full`` is torch.compile. batch: the number
    of images per call that a sampler repeats, for which whole networks may be compiled or recorded; 0 for training and
    for calls of any size. Parameters keep their names and, in ``exact``, their values. Raises DeviceError.
    """
    execution = execution_on(device, precision, compile)
    if device.type == "cpu":
        keep_freed_memory()
    to_device(set_precision(network, precision, device), device)
    set_up([network] if batch else [], execution, batch)
    return network


@contextmanager
def repeatable(precision: str = "exact") -> Iterator[None]:
    """Within, equal work on one device gives equal bytes; all switches of the process are put back afterwards."""
    names = ("benchmark", "deterministic", "allow_tf32")
    before = {name: getattr(torch.backends.cudnn, name) for name in names}
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
    torch.backends.cudnn.allow_tf32 = precision == "fast"
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(torch.backends.cudnn, name, value)
