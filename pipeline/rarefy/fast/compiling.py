"""Whole networks under ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.models.adm import ADM, Classifier


def compiled(network: nn.Module, batch: int) -> Callable[..., Tensor]:
    """The network's forward pass, compiled for ``batch`` images; calls of any other size stay eager.

    Of rarefy's own networks, only the calls are compiled that a sampler repeats: a classifier's with gradients.
    """
    eager: Callable[..., Tensor] = network.forward
    mode = "reduce-overhead" if next(network.parameters()).is_cuda else "default"
    fast: Callable[..., Tensor] = torch.compile(eager, dynamic=False, mode=mode)
    gradients = (isinstance(network, Classifier),) if isinstance(network, ADM) else (True, False)

    def forward(x: Tensor, *rest: Tensor | None) -> Tensor:
        if len(x) != batch or x.requires_grad not in gradients:
            return eager(x, *rest)
        return _own(fast(_own(x), *rest))

    return forward


class _Own(torch.autograd.Function):
    """A copy, also of the gradient: CUDA graphs overwrite their results at the next call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].clone()


def _own(x: Tensor) -> Tensor:
    copy: Tensor = _Own.apply(x)  # type: ignore[no-untyped-call]
    return copy
