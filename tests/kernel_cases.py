"""Shared by the tests of rarefy's kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from goldens import relative_error
from rarefy.models.config import GROUPS

BOTH = [torch.float32, torch.bfloat16]


def error(value: Tensor, expected: Tensor) -> float:
    """Error relative to the norm."""
    return relative_error(value.detach().double(), expected.detach().double())


class Normalised(NamedTuple):
    """y, (B, N, C); statistics a, b, mean, 1 / deviation, (4, B, C); grad_x and means of du and du x_hat."""

    y: Tensor
    statistics: Tensor
    gradients: tuple[Tensor, Tensor, Tensor]


def normalised(
    x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool
) -> Normalised:
    """Group normalisation from its formula, in float64, with gradients by autograd. x, grad: (B, N, C)."""
    x = x.detach().double().requires_grad_()
    grouped = x.unflatten(-1, (GROUPS, -1))
    width = grouped.shape[-1]
    mean = grouped.mean((1, 3)).repeat_interleave(width, 1)
    rstd = (grouped.var((1, 3), unbiased=False) + 1e-5).rsqrt().repeat_interleave(width, 1)
    factor = 1 + (0 if scale is None else scale.double())
    a = rstd * weight.double() * factor
    b = bias.double() * factor - mean * a + (0 if shift is None else shift.double())
    u = x * a[:, None] + b[:, None]
    y = F.silu(u) if silu else u * 1
    grad_x, du = torch.autograd.grad(y, (x, u), grad.double())
    x_hat = (x - mean[:, None]) * rstd[:, None]
    means = du.mean(1), (du * x_hat).mean(1)
    return Normalised(y.detach(), torch.stack([a, b, mean, rstd]).detach(), (grad_x, means[0], means[1].detach()))
