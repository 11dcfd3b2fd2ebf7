"""Everything that only makes the networks faster. Without this folder rarefy runs the plain networks, in float32.

:func:`prepare` and :func:`has_cpu_kernels` are used from outside, by :mod:`rarefy.execution` alone.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from rarefy.device import has_bfloat16
from rarefy.fast.caches import place_caches
from rarefy.fast.compiling import compiled
from rarefy.fast.cpu import native
from rarefy.fast.cpu.allocator import keep_freed_memory
from rarefy.fast.gpu.graph import recorded
from rarefy.fast.networks import exchange, to_bfloat16
from rarefy.fast.other import under_autocast
from rarefy.models.adm import ADM

Network = TypeVar("Network", bound=nn.Module)


def prepare(network: Network, device: torch.device, precision: str, compile: str, batch: int) -> Network:
    """Move a network to a device, in place, and make it fast there; returns it. See :func:`rarefy.execution.prepare`.

    Only the calls that a sampler repeats are compiled or recorded: ``batch`` images, for a classifier with their
    gradient. All other calls stay eager, since each new shape would cost time and memory.
    """
    own_kernels = compile == "auto" and isinstance(network, ADM)
    reduced = precision == "fast" and has_bfloat16(device)
    network.__dict__.pop("forward", None)
    if isinstance(network, ADM):
        exchange(network, own_kernels)
        if reduced:
            to_bfloat16(network)
    if device.type == "cpu":
        keep_freed_memory()
        if own_kernels:
            native.available()  # builds the kernels if necessary
    elif device.type == "cuda":
        place_caches()
    if any(parameter.is_meta for parameter in network.parameters()):
        return network  # to be filled from a file and prepared again
    network.to(device)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    # A module calls its own attribute named "forward" rather than its class's.
    if reduced and not isinstance(network, ADM):
        network.__dict__["forward"] = under_autocast(network, device)
    if batch and compile == "full":
        place_caches()
        network.__dict__["forward"] = compiled(network, batch)
    elif batch and own_kernels and isinstance(network, ADM) and device.type == "cuda":
        network.__dict__["forward"] = recorded(network, batch)
    return network


def has_cpu_kernels() -> bool:
    """Whether rarefy's kernels for CPUs can be used here; builds and loads them if necessary."""
    return native.available()
