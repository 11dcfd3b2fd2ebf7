"""3x3 convolutions, alone or fused with the normalisation before them, by rarefy's CPU kernels where they are faster.

The fused kernel takes a few images at a time through both steps, so that the normalised images stay in the
processor's cache. Results agree with torch's within rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rarefy.fast.cpu import native
from rarefy.fast.gradient import first_order
from rarefy.fast.norm import FastGroupNorm, affine_gradients
from rarefy.fast.resample import upsample
from rarefy.models.config import GROUPS


def working_dtype(like: Tensor) -> torch.dtype:
    """The type that a layer with such a weight computes in: autocast's if that applies, else the weight's own."""
    device = like.device.type
    autocast = torch.is_autocast_enabled(device) and like.dtype != torch.float64
    return torch.get_autocast_dtype(device) if autocast else like.dtype


class FastConv3x3(nn.Conv2d):
    """``nn.Conv2d(in_channels, out_channels, 3, padding=1)`` that can add a residual to its result.

    own_kernels: whether to use rarefy's kernels where they support the input.
    """

    own_kernels = False

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); residual: (B, K, H, W) -> (B, K, H, W)."""
        dtype, bias = working_dtype(self.weight), self.bias
        x, weight, bias = x.to(dtype), self.weight.to(dtype), None if bias is None else bias.to(dtype)
        if self.own_kernels and torch.is_grad_enabled() and any(map(self._supports(x), self.weight.shape[:2])):
            y: Tensor = _Conv.apply(x, weight, bias, residual)  # type: ignore[no-untyped-call]
            return y
        return _convolve(x, weight, bias, residual, self.own_kernels)

    def supports(self, x: Tensor) -> bool:
        """Whether the fused kernel supports such images, and also their gradient if one may be asked for."""
        sizes = [self.in_channels, self.out_channels] if torch.is_grad_enabled() else [self.in_channels]
        return self.own_kernels and working_dtype(self.weight) == x.dtype and all(map(self._supports(x), sizes))

    @staticmethod
    def _supports(x: Tensor) -> Any:
        return lambda channels: native.supports_conv3x3(x, channels)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, own_kernels: bool) -> Tensor:
    if own_kernels and native.supports_conv3x3(x, x.shape[1]):
        return native.conv3x3(x, weight, bias, residual)
    y = F.conv2d(x, weight, bias, padding=1)
    if residual is None:
        return y
    return y.add_(residual) if y.dtype == residual.dtype else residual + y


class _Conv(torch.autograd.Function):
    """Forward and both gradients, each by rarefy's kernel where it supports them and else by torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias, residual, True)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad
        grad_x, grad_weight, grad_bias = None, None, None
        if needs_x and native.supports_conv3x3(grad, grad.shape[1]):
            grad_x, needs_x = native.conv3x3(grad, weight, None, turned=True), False
        if (needs_weight or needs_bias) and native.supports_conv3x3(x, x.shape[1]):
            grad_weight, grad_bias = native.conv3x3_weights(x, grad)
            needs_weight = needs_bias = False
        if needs_x or needs_weight or needs_bias:
            mask, ones = [needs_x, needs_weight, needs_bias], [1, 1]
            by_torch = torch.ops.aten.convolution_backward(
                grad, x, weight, [len(weight)], ones, ones, ones, False, [0, 0], 1, mask
            )
            grad_x, grad_weight, grad_bias = (
                other if own is None else own
                for own, other in zip((grad_x, grad_weight, grad_bias), by_torch, strict=True)
            )
        return grad_x, grad_weight, grad_bias, grad if needs_residual else None


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

    x: (B, C, H, W); scale, shift: (B, C), both or neither; residual: of the result's shape.
    """
    assert isinstance(norm, FastGroupNorm) and isinstance(conv, FastConv3x3)
    drops = dropout is not None and dropout.training and dropout.p > 0
    if drops or not conv.supports(x):
        h = norm(x, scale, shift, silu=True)
        y: Tensor = conv(h if dropout is None else dropout(h), residual)
    elif torch.is_grad_enabled():
        y = _NormConv.apply(x, *_affine(norm), scale, shift, *_affine(conv), residual)  # type: ignore[no-untyped-call]
    else:
        y = native.norm_conv3x3([x], _affine(norm), scale, shift, GROUPS, *_affine(conv), residual).y
    return y


def norm_act_conv_and_skip(
    parts: Sequence[Tensor], norm: nn.Module, conv: nn.Module, skip: nn.Module
) -> tuple[Tensor, Tensor]:
    """conv(SiLU(group_norm(x))) and skip(x), for x = join(parts)."""
    assert isinstance(norm, FastGroupNorm) and isinstance(conv, FastConv3x3)
    fits = all(part.shape[2:] == parts[-1].shape[2:] or _is_half(part, parts[-1]) for part in parts)
    if torch.is_grad_enabled() or not fits or not _fuses(skip) or not conv.supports(parts[-1]):
        x = join(parts)
        return norm_act_conv(x, norm, conv), skip(x)
    fused = native.norm_conv3x3(parts, _affine(norm), None, None, GROUPS, *_affine(conv), skip=_affine(skip))
    assert fused.skipped is not None
    return fused.y, fused.skipped


def join(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the channels of one or two images, (B, C, H, W); the first is upsampled to the second's size."""
    if len(parts) == 1:
        return parts[0]
    first, second = parts
    return torch.cat([upsample(first) if _is_half(first, second) else first, second], dim=1)


def _is_half(first: Tensor, second: Tensor) -> bool:
    """Whether the first image has half the height and width of the second."""
    return all(2 * short == long for short, long in zip(first.shape[2:], second.shape[2:], strict=True))


def _fuses(skip: nn.Module) -> bool:
    """Whether it is a 1x1 convolution whose channels fill the kernel's panels."""
    return isinstance(skip, nn.Conv2d) and skip.kernel_size == (1, 1) and skip.out_channels % (2 * native.CHANNELS) == 0


def _affine(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A layer's weight and bias."""
    assert isinstance(layer.weight, Tensor) and isinstance(layer.bias, Tensor)
    return layer.weight, layer.bias


class _NormConv(torch.autograd.Function):
    """The fused kernel with all gradients. The normalised images are kept only if the weights need a gradient."""

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
        affine, keep = (norm_weight, norm_bias), needs_weight or needs_bias
        fused = native.norm_conv3x3([x], affine, scale, shift, GROUPS, weight, bias, residual, keep=keep)
        ctx.save_for_backward(x, fused.statistics, fused.normalised, norm_weight, norm_bias, scale, weight)
        return fused.y

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, statistics, normalised, norm_weight, norm_bias, scale, weight) = grads, ctx.saved_tensors
        gradients: list[Tensor | None] = [None] * 7
        if any(ctx.needs_input_grad[:5]):
            gradients[0], mean_du, mean_du_xhat = native.norm_conv3x3_backward(x, statistics, GROUPS, weight, grad)
            if any(ctx.needs_input_grad[1:5]):
                count = x.shape[2] * x.shape[3]
                gradients[1:5] = affine_gradients(count * mean_du, count * mean_du_xhat, norm_weight, norm_bias, scale)
        if normalised is not None:
            gradients[5:7] = native.conv3x3_weights(normalised, grad)
        return *gradients, grad if ctx.needs_input_grad[7] else None
