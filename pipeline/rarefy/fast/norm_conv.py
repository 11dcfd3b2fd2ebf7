"""Normalisation with scale, shift and SiLU, and the 3x3 convolution behind it: on CPUs one kernel.

It takes a few images at a time through both, so that what lies between stays in the processor's cache; results are
those of one after the other, within rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rarefy.fast.conv import Conv3x3, working_dtype
from rarefy.fast.cpu import native
from rarefy.fast.norm import GROUPS, affine_gradients, norm_act
from rarefy.fast.resample import upsample


def norm_act_conv(
    x: Tensor,
    norm: nn.Module,
    conv: nn.Module,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    dropout: nn.Dropout | None = None,
) -> Tensor:
    """conv(dropout(SiLU(group_norm(x) * (1 + scale) + shift))) + residual.

    x: (B, C, H, W); scale, shift: (B, C), both or none; residual: like the result.
    """
    dropped = dropout is not None and dropout.training and dropout.p > 0
    if dropped or not _takes(x, conv):
        h = norm_act(x, norm, scale, shift)
        y: Tensor = conv(h if dropout is None else dropout(h), residual)
    elif torch.is_grad_enabled():
        y = _NormConv.apply(x, *_affine(norm), scale, shift, *_affine(conv), residual)  # type: ignore[no-untyped-call]
    else:
        y = _kernel([x], _affine(norm), scale, shift, _affine(conv), residual).y
    return y


def norm_act_conv_and_skip(
    parts: Sequence[Tensor], norm: nn.Module, conv: nn.Module, skip: nn.Module
) -> tuple[Tensor, Tensor]:
    """conv(SiLU(group_norm(x))) and skip(x), for x = join(parts)."""
    if torch.is_grad_enabled() or not _passes(skip) or not _takes(parts[-1], conv):
        x = join(parts)
        return norm_act_conv(x, norm, conv), skip(x)
    found = _kernel(parts, _affine(norm), None, None, _affine(conv), skip=_affine(skip))
    assert found.skipped is not None
    return found.y, found.skipped


def join(parts: Sequence[Tensor]) -> Tensor:
    """One image, (B, C, H, W), or two with their channels side by side, the first upsampled to the second's size."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    return torch.cat([first if first.shape[2:] == second.shape[2:] else upsample(first), second], dim=1)


def _takes(x: Tensor, conv: nn.Module) -> bool:
    """Whether the kernel is on for such images, and takes the gradient too where one may be asked for."""
    assert isinstance(conv, Conv3x3)
    gradients = [conv.out_channels] if torch.is_grad_enabled() else []
    sizes = (conv.in_channels, *gradients)
    return x.dtype == working_dtype(x) and all(native.takes_conv3x3(x, channels) for channels in sizes)


def _passes(skip: nn.Module) -> bool:
    """Whether it is a 1x1 convolution whose channels fill the kernel's panels."""
    return isinstance(skip, nn.Conv2d) and skip.kernel_size == (1, 1) and skip.out_channels % (2 * native.CHANNELS) == 0


def _affine(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Its weight and bias."""
    assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
    return layer.weight, layer.bias


def _kernel(
    parts: Sequence[Tensor],
    norm: tuple[Tensor, Tensor],
    scale: Tensor | None,
    shift: Tensor | None,
    conv: tuple[Tensor, Tensor],
    residual: Tensor | None = None,
    skip: tuple[Tensor, Tensor] | None = None,
    keep: bool = False,
) -> native.NormConv:
    """:func:`native.norm_conv3x3` in the images' dtype."""
    (weight, bias), dtype = conv, parts[-1].dtype
    added = None if residual is None else residual.to(dtype)
    return native.norm_conv3x3(parts, norm, scale, shift, GROUPS, weight.to(dtype), bias, added, skip, keep)


class _NormConv(torch.autograd.Function):
    """With all gradients; those of the convolution's weights need what lies between, which is kept for them alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
    ) -> Tensor:
        *_, needs_weight, needs_bias, _ = ctx.needs_input_grad
        keep = needs_weight or needs_bias
        found = _kernel([x], (norm_weight, norm_bias), scale, shift, (weight, bias), residual, keep=keep)
        ctx.save_for_backward(x, found.statistics, found.between, norm_weight, norm_bias, scale, weight)
        return found.y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, statistics, between, norm_weight, norm_bias, scale, weight) = grads, ctx.saved_tensors
        found: list[Tensor | None] = [None] * 7
        if any(ctx.needs_input_grad[:5]):
            arrays = (x, statistics, GROUPS, weight.to(x.dtype), grad)
            found[0], mean_du, mean_du_xhat = native.norm_conv3x3_backward(*arrays)
            if any(ctx.needs_input_grad[1:5]):
                count = x.shape[2] * x.shape[3]
                found[1:5] = affine_gradients(count * mean_du, count * mean_du_xhat, norm_weight, norm_bias, scale)
        if between is not None:
            found[5:7] = (v.to(weight.dtype) for v in native.conv3x3_weights(between, grad))
        return *found, grad if ctx.needs_input_grad[7] else None
