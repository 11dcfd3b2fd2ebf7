"""The 3x3 convolutions of the networks, by the project's own kernel where that is on and the faster way."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rarefy.fast.cpu import native


def working_dtype(like: Tensor) -> torch.dtype:
    """What a network with such weights or images computes in: autocast's type where that is on, else their own."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d(in_channels, out_channels, 3, padding=1)``: the same parameters, results and gradients.

    Called with a residual, (B, out_channels, H, W), it adds that.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        dtype, bias = working_dtype(self.weight), self.bias
        x, weight, bias = x.to(dtype), self.weight.to(dtype), None if bias is None else bias.to(dtype)
        channels = (self.in_channels, self.out_channels)
        if torch.is_grad_enabled() and any(native.takes_conv3x3(x, count) for count in channels):
            y: Tensor = _Conv.apply(x, weight, bias, residual)  # type: ignore[no-untyped-call]
            return y
        return _convolve(x, weight, bias, residual)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    if native.takes_conv3x3(x, x.shape[1]):
        return native.conv3x3(x, weight, bias, None if residual is None else residual.to(x.dtype))
    y = F.conv2d(x, weight, bias, padding=1)
    if residual is None:
        return y
    return y.add_(residual) if y.dtype == residual.dtype else residual + y


class _Conv(torch.autograd.Function):
    """Forward and both gradients, each by the kernel where it takes them and else by torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias, residual)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        needs_x, needs_weight, needs_bias, needs_residual = ctx.needs_input_grad
        grad_x, grad_weight, grad_bias = None, None, None
        if needs_x and native.takes_conv3x3(grad, grad.shape[1]):
            grad_x, needs_x = native.conv3x3(grad, weight, None, turned=True), False
        if (needs_weight or needs_bias) and native.takes_conv3x3(x, x.shape[1]):
            grad_weight, grad_bias = (v.to(x.dtype) for v in native.conv3x3_weights(x, grad))
            needs_weight = needs_bias = False
        if needs_x or needs_weight or needs_bias:
            needed, ones = [needs_x, needs_weight, needs_bias], [1, 1]
            found = torch.ops.aten.convolution_backward(
                grad, x, weight, [len(weight)], ones, ones, ones, False, [0, 0], 1, needed
            )
            grad_x, grad_weight, grad_bias = (
                mine if mine is not None else other
                for mine, other in zip((grad_x, grad_weight, grad_bias), found, strict=True)
            )
        return grad_x, grad_weight, grad_bias, grad if needs_residual else None
