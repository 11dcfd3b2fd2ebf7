"""Networks that are not rarefy's own, whose layers are not known: only the precision of their operations is changed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def under_autocast(network: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """The network's forward pass with convolutions and matrix products in bfloat16; its result is in x's type."""
    eager: Callable[..., Tensor] = network.forward

    def forward(x: Tensor, *rest: Tensor | None) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return eager(x, *rest).to(x.dtype)

    return forward
