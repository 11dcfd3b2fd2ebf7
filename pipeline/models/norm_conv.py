"""Normalisation with scale, shift and SiLU, and the 3x3 convolution behind it: on CPUs one kernel for frozen networks.

It takes a few images at a time through both, so that what lies between stays in the processor's cache; results are
those of one after the other, within rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models import native
from pipeline.models.conv import Conv3x3
from pipeline.models.norm import GROUPS, norm_act


def norm_act_conv(
    x: Tensor,
    norm: nn.Module,
    conv: nn.Module,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    dropout: nn.Module | None = None,
) -> Tensor:
    """conv(dropout(SiLU(group_norm(x) * (1 + scale) + shift))) + residual.

    x: (B, C, H, W); scale, shift: (B, C), both or none; residual: like the result.
    """
    if not _takes(x, norm, conv, scale, shift):
        h = norm_act(x, norm, scale, shift)
        y: Tensor = conv(h if dropout is None else dropout(h), residual)
        return y
    added = None if residual is None else residual.to(x.dtype)
    if torch.is_grad_enabled():
        y = _NormConv.apply(x, norm, conv, scale, shift, added)  # type: ignore[no-untyped-call]
    else:
        y, *_ = native.norm_conv3x3([x], _affine(norm), scale, shift, GROUPS, *_affine(conv), added)
    return y


def norm_act_conv_and_skip(
    parts: Sequence[Tensor], norm: nn.Module, conv: nn.Module, skip: nn.Module
) -> tuple[Tensor, Tensor]:
    """conv(SiLU(group_norm(x))) and skip(x), for x = join(parts)."""
    if torch.is_grad_enabled() or not _passes(skip) or not _takes(parts[-1], norm, conv):
        x = join(parts)
        return norm_act_conv(x, norm, conv), skip(x)
    arguments = (_affine(norm), None, None, GROUPS, *_affine(conv))
    h, _, skipped = native.norm_conv3x3(parts, *arguments, skip=_affine(skip))
    assert skipped is not None
    return h, skipped


def join(parts: Sequence[Tensor]) -> Tensor:
    """One image, (B, C, H, W), or two with their channels side by side, the first upsampled to the second's size."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    if first.shape[2:] != second.shape[2:]:
        first = F.interpolate(first, scale_factor=2, mode="nearest")
    return torch.cat([first, second], dim=1)


def _takes(x: Tensor, norm: nn.Module, conv: nn.Module, *others: Tensor | None) -> bool:
    """Whether the kernel is on: in no network that trains, and for no gradient but that of an image."""
    assert isinstance(conv, Conv3x3)
    if conv.training or torch.is_autocast_enabled(x.device.type) or not native.takes_conv3x3(x, conv.in_channels):
        return False
    if not torch.is_grad_enabled():
        return True
    frozen = not any(v.requires_grad for v in (*norm.parameters(), *conv.parameters(), *others) if v is not None)
    return frozen and native.takes_conv3x3(x, conv.out_channels)


def _passes(skip: nn.Module) -> bool:
    """Whether it is a 1x1 convolution whose channels fill the kernel's panels."""
    return isinstance(skip, nn.Conv2d) and skip.kernel_size == (1, 1) and skip.out_channels % (2 * native.CHANNELS) == 0


def _affine(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Its weight and bias."""
    assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
    return layer.weight, layer.bias


class _NormConv(torch.autograd.Function):
    """With the gradients of the image and of the residual."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: nn.Module,
        conv: nn.Module,
        scale: Tensor | None,
        shift: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        arguments = (_affine(norm), scale, shift, GROUPS, *_affine(conv), residual)
        y, statistics, _ = native.norm_conv3x3([x], *arguments)
        ctx.save_for_backward(x, statistics, conv.weight)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needs_x, *_, needs_residual = ctx.needs_input_grad
        x, statistics, weight = ctx.saved_tensors
        grad_x = native.norm_conv3x3_backward(x, statistics, GROUPS, weight, grads[0]) if needs_x else None
        return grad_x, None, None, None, None, grads[0] if needs_residual else None
