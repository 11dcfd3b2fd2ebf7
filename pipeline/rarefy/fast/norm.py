"""Group normalisation fused with the scale, shift and SiLU that follow it in ADM.

torch's kernels for channels-last images take up to seven times as long as rarefy's and would dominate the time of a
small U-Net. rarefy's are in :mod:`rarefy.fast.cpu.native` and :mod:`rarefy.fast.gpu.norm`. Where they are off or not
available on a CPU, means over the channels-last view do the same in torch's operations.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rarefy.fast.cpu import native
from rarefy.fast.gpu import norm as triton_norm
from rarefy.fast.gradient import first_order
from rarefy.models.config import GROUPS


class FastGroupNorm(nn.GroupNorm):
    """``nn.GroupNorm`` with at least float32 statistics, and optionally what follows it.

    own_kernels: whether to use rarefy's kernels where they support the input.
    """

    own_kernels = False

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, silu: bool = False
    ) -> Tensor:
        """f(group_norm(x) * (1 + scale) + shift), with f = SiLU or the identity.

        x: (B, C, H, W), any float dtype; scale and shift: (B, C), both or neither. Returns x's shape and dtype.
        """
        kernels = self._kernels(x)
        if kernels is None:
            return self._by_torch(x, scale, shift, silu)
        if not torch.is_grad_enabled():
            y, _ = kernels.norm_forward(_tokens(x), self.weight, self.bias, scale, shift, GROUPS, silu)
            return _image(y, x.shape[2:])
        image: Tensor = _Norm.apply(x, self.weight, self.bias, scale, shift, silu, kernels)  # type: ignore[no-untyped-call]
        return image

    def _kernels(self, x: Tensor) -> ModuleType | None:
        if not self.own_kernels or x.ndim != 4 or (self.num_groups, self.eps) != (GROUPS, triton_norm.EPS):
            return None
        return next((module for module in (native, triton_norm) if module.supports_norm(x)), None)

    def _by_torch(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
        if x.ndim != 4 or x.device.type != "cpu" or x.dtype == torch.float64 or torch.compiler.is_compiling():
            return self._by_group_norm(x, scale, shift, silu)
        values = _tokens(x).float()
        centre = _token_mean(values)
        mean = self._group_mean(centre)
        distance, overwrite = values - centre[:, None], not torch.is_grad_enabled()
        squares = distance.square_() if overwrite else distance.square()
        variance = self._group_mean(_token_mean(squares) + (centre - mean).square())
        a = torch.rsqrt(variance + self.eps) * self.weight.float()
        b = self.bias.float() - mean * a
        if scale is not None and shift is not None:
            factor = 1 + scale.float()
            a, b = a * factor, b * factor + shift.float()
        u = torch.addcmul(b[:, None], values, a[:, None])
        return _image(F.silu(u, inplace=overwrite) if silu else u, x.shape[2:]).to(x.dtype)

    def _by_group_norm(self, x: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
        values = x if x.dtype == torch.float64 else x.float()
        weight, bias = self.weight.to(values.dtype), self.bias.to(values.dtype)
        h = F.group_norm(values, self.num_groups, weight, bias, self.eps)
        if scale is not None and shift is not None:
            h = h * (1 + scale[..., None, None]) + shift[..., None, None]
        return (F.silu(h) if silu else h).to(x.dtype)

    def _group_mean(self, values: Tensor) -> Tensor:
        """(B, C) -> (B, C): the mean over each channel's group."""
        grouped: Tensor = values.unflatten(1, (self.num_groups, -1))
        return grouped.mean(-1, keepdim=True).expand_as(grouped).flatten(1)


class _Norm(torch.autograd.Function):
    """y = f(a x + b), with a and b of shape (B, C) from group statistics, weights, scale and shift."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        silu: bool,
        kernels: ModuleType,
    ) -> Tensor:
        tokens = _tokens(x)
        y, statistics = kernels.norm_forward(tokens, weight, bias, scale, shift, GROUPS, silu)
        ctx.save_for_backward(tokens, statistics, weight, bias, scale)
        ctx.silu, ctx.kernels = silu, kernels
        return _image(y, x.shape[2:])

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, statistics, weight, bias, scale = ctx.saved_tensors
        grad_tokens, mean_du, mean_du_xhat = ctx.kernels.norm_backward(
            tokens, _tokens(grads[0]), statistics, GROUPS, ctx.silu
        )
        grad_x = _image(grad_tokens, grads[0].shape[2:])
        if not any(ctx.needs_input_grad[1:5]):
            return grad_x, *[None] * 6
        count = tokens.shape[1]
        return grad_x, *affine_gradients(count * mean_du, count * mean_du_xhat, weight, bias, scale), None, None


def affine_gradients(
    sum_du: Tensor, sum_du_xhat: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to weight, bias, scale and shift, from sums over the tokens of du and du x_hat, (B, C)."""
    factor = torch.ones_like(sum_du) if scale is None else 1 + scale.float()
    grad_weight = (sum_du_xhat * factor).sum(0).to(weight.dtype)
    grad_bias = (sum_du * factor).sum(0).to(bias.dtype)
    if scale is None:
        return grad_weight, grad_bias, None, None
    grad_scale = sum_du_xhat * weight.float() + sum_du * bias.float()
    return grad_weight, grad_bias, grad_scale.to(scale.dtype), sum_du.to(scale.dtype)


def _token_mean(values: Tensor) -> Tensor:
    """(B, N, C) -> (B, C). On a CPU a matrix product is several times as fast as ``mean`` over an inner axis."""
    batch, count, _ = values.shape
    return torch.bmm(values.new_full((1, 1, count), 1 / count).expand(batch, 1, count), values)[:, 0]


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C); a view if x is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _image(tokens: Tensor, size: torch.Size) -> Tensor:
    image: Tensor = tokens.unflatten(1, size)
    return image.permute(0, 3, 1, 2)
