"""Normalisation with scale, shift and SiLU, and the 3x3 convolution behind it: on CPUs one kernel for frozen networks.

It takes a few images at a time through both, so that what lies between stays in the processor's cache; results are
those of one after the other, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models import native
from pipeline.models.conv import Conv3x3
from pipeline.models.norm import GROUPS, norm_act


def takes(parts: Sequence[Tensor], norm: nn.Module, conv: Conv3x3, *others: Tensor | None) -> bool:
    """Whether the kernel is on for such images, one or two whose channels lie side by side.

    Not where a network trains, nor for any gradient but that of a single image: not for ``others``' (scale, shift).
    """
    if conv.training or torch.is_autocast_enabled(parts[0].device.type):
        return False
    if not native.takes_conv3x3(parts[0], conv.in_channels):
        return False
    if not torch.is_grad_enabled():
        return True
    frozen = not any(v.requires_grad for v in (*norm.parameters(), *conv.parameters(), *others) if v is not None)
    return frozen and len(parts) == 1 and native.takes_conv3x3(parts[0], conv.out_channels)


def norm_act_conv(
    parts: Sequence[Tensor],
    norm: nn.Module,
    conv: Conv3x3,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    dropout: nn.Module | None = None,
) -> Tensor:
    """conv(dropout(SiLU(group_norm(x) * (1 + scale) + shift))) + residual.

    parts: x, (B, C, H, W), or two images whose channels lie side by side; scale, shift: (B, C), both or none;
    residual: like the result.
    """
    if not takes(parts, norm, conv, scale, shift):
        h = norm_act(join(parts), norm, scale, shift)
        y: Tensor = conv(h if dropout is None else dropout(h), residual)
        return y
    assert isinstance(norm, nn.GroupNorm)
    added = None if residual is None else residual.to(parts[0].dtype)
    if not torch.is_grad_enabled():
        return _forward(parts, norm, conv, scale, shift, added)[0]
    y = _NormConv.apply(parts[0], norm, conv, scale, shift, added)  # type: ignore[no-untyped-call]
    return y


def join(parts: Sequence[Tensor]) -> Tensor:
    """Images as one, their channels side by side."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


def _forward(
    parts: Sequence[Tensor],
    norm: nn.GroupNorm,
    conv: Conv3x3,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor]:
    affine = (norm.weight, norm.bias)
    return native.norm_conv3x3(parts, affine, scale, shift, GROUPS, conv.weight, conv.bias, residual)


class _NormConv(torch.autograd.Function):
    """Of one image, with the gradients of that and of the residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: nn.GroupNorm,
        conv: Conv3x3,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        y, statistics = _forward([x], norm, conv, scale, shift, residual)
        ctx.save_for_backward(x, statistics, conv.weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, *_, needs_residual = ctx.needs_input_grad
        x, statistics, weight = ctx.saved_tensors
        grad_x = native.norm_conv3x3_backward(x, statistics, GROUPS, weight, grads[0]) if needs_x else None
        return grad_x, None, None, None, None, grads[0] if needs_residual else None
