"""Numerical modes of a frozen network: ``exact`` float32 and ``fast`` bfloat16."""

from __future__ import annotations

import shutil
from typing import TypeVar

import torch
from torch import nn

from pipeline.errors import ManifestError, bad
from pipeline.models import norm
from pipeline.models.adm import ADM

Network = TypeVar("Network", bound=nn.Module)

PRECISIONS = ("exact", "fast")


def set_precision(network: ADM, precision: str) -> None:
    """Cast a network in place.

    fast: convolutions, attention and embedding layers of the blocks in bfloat16; the time embedding, the normalisation
    statistics and the output layer stay float32, so that eps and logits are not rounded to 8 bits at the end.
    """
    if precision not in PRECISIONS:
        raise ManifestError(bad("sampler.precision", precision, f"one of {', '.join(PRECISIONS)}"))
    if precision == "exact":
        return
    norm.set_compiled(shutil.which("c++") is not None or shutil.which("g++") is not None)
    for block in network.blocks():
        for module in block.modules():
            if not isinstance(module, nn.GroupNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(torch.bfloat16)


def to_device(network: Network, device: torch.device) -> Network:
    """Move a network in place, its convolution weights channels-last."""
    network.to(device)
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return network
