"""Attention over (B, heads, N, d), by torch's fastest kernel that gives the same bytes each time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rarefy.fast.gradient import first_order

FEW_TOKENS = 256  # up to here plain matrix products are faster on a CPU than the flash kernel


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    On a CPU the flash kernel is slow for few tokens if a gradient is needed or the precision is reduced; plain matrix
    products are used instead. For many tokens it is faster, and stores no N x N weights for the backward pass. On a GPU
    its gradient depends on the order in which threads finish unless torch is told otherwise; torch.compile does not
    carry that over.
    """
    wants_gradient = torch.is_grad_enabled() and q.requires_grad
    reduced = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type == "cpu" and q.shape[-2] <= FEW_TOKENS and (wants_gradient or reduced):
        return plain_attention(q, k, v)
    if q.is_cuda and wants_gradient and not torch.compiler.is_compiling():
        attended: Tensor = _RepeatableAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
        return attended
    return F.scaled_dot_product_attention(q, k, v)


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``attend`` by two matrix products."""
    weights: Tensor = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    return weights @ v


class _RepeatableAttention(torch.autograd.Function):
    """torch's fused attention, with a gradient that is the same each time.

    torch's only switch for that is for the whole process, and some other operations fail under it. It is therefore on
    for this gradient alone, which recomputes the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            with torch.enable_grad():
                q, k, v = (part.detach().requires_grad_() for part in ctx.saved_tensors)
                return torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), grads[0])
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
