"""Group normalisation fused with the per-sample scale and shift and the SiLU that follow it in ADM.

torch's own kernels for channels-last images take up to seven times as long and would dominate a small U-Net's time.
Here the statistics are means over the channels-last view, in float32 and centred before they are squared; what
remains is one affine map and SiLU, forward and backward written out: in torch operations, and as kernels of our own for
CPUs (:mod:`rarefy.fast.cpu.native`) and for GPUs (:mod:`rarefy.fast.gpu.norm`). float64 takes torch's.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rarefy.fast.cpu import native
from rarefy.fast.cpu.native import EPS
from rarefy.fast.gpu import norm as triton_norm

GROUPS = 32


def group_norm(num_channels: int) -> nn.GroupNorm:
    """The reference's ``normalization(channels)``: 32 groups."""
    if num_channels % GROUPS:
        raise ValueError(f"channels: {num_channels} is not a multiple of {GROUPS}, the number of normalisation groups")
    return nn.GroupNorm(GROUPS, num_channels, eps=EPS)


def norm_act(x: Tensor, norm: nn.Module, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """SiLU(group_norm(x) * (1 + scale) + shift).

    x: (B, C, H, W), any float dtype; scale and shift: (B, C), both or none. Returns x's shape and dtype.
    """
    assert isinstance(norm, nn.GroupNorm)
    if x.dtype != torch.float64:
        return _fused(x, norm, scale, shift, True)
    h = _plain(x, norm)
    if scale is not None and shift is not None:
        h = h * (1 + scale[..., None, None]) + shift[..., None, None]
    return F.silu(h)


def plain_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """group_norm(x) with at least float32 statistics, in x's dtype. x: (B, C, H, W)."""
    return _plain(x, norm) if x.dtype == torch.float64 else _fused(x, norm, None, None, False)


def _plain(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    return F.group_norm(x, norm.num_groups, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def _fused(x: Tensor, norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None, silu: bool) -> Tensor:
    kernels = _kernels(x)
    if kernels is not None and not torch.is_grad_enabled():
        values, _ = kernels.norm_forward(_tokens(x), norm.weight, norm.bias, scale, shift, GROUPS, silu)
        return _image(values, x.shape[2:])
    y: Tensor = _Norm.apply(x, norm.weight, norm.bias, scale, shift, silu)  # type: ignore[no-untyped-call]
    return y


class _Norm(torch.autograd.Function):
    """y = f(a x + b), a and b of (B, C) from group statistics, weights, scale and shift; f is SiLU or nothing."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool
    ) -> Tensor:
        tokens, kernels = _tokens(x), _kernels(x)
        if kernels is None:
            y, statistics = _normalise(tokens, weight, bias, scale, shift, silu)
        else:
            y, statistics = kernels.norm_forward(tokens, weight, bias, scale, shift, GROUPS, silu)
        ctx.save_for_backward(tokens, statistics, weight, bias, scale)
        ctx.silu = silu
        return _image(y, x.shape[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, statistics, weight, bias, scale = ctx.saved_tensors
        grad, count, kernels = _tokens(grads[0]), tokens.shape[1], _kernels(tokens)
        if kernels is None:
            grad_x, mean_du, mean_du_xhat = _gradients(tokens, grad, statistics, ctx.silu)
        else:
            grad_x, mean_du, mean_du_xhat = kernels.norm_backward(tokens, grad, statistics, GROUPS, ctx.silu)
        grad_x = _image(grad_x, grads[0].shape[2:])
        if not any(ctx.needs_input_grad[1:5]):
            return grad_x, None, None, None, None, None
        return grad_x, *affine_gradients(count * mean_du, count * mean_du_xhat, weight, bias, scale), None


def affine_gradients(
    sum_du: Tensor, sum_du_xhat: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to weight, bias, scale and shift, of sums over the tokens, (B, C)."""
    factor = torch.ones_like(sum_du) if scale is None else 1 + scale.float()
    grad_weight = (sum_du_xhat * factor).sum(0).to(weight.dtype)
    grad_bias = (sum_du * factor).sum(0).to(bias.dtype)
    if scale is None:
        return grad_weight, grad_bias, None, None
    grad_scale = sum_du_xhat * weight.float() + sum_du * bias.float()
    return grad_weight, grad_bias, grad_scale.to(scale.dtype), sum_du.to(scale.dtype)


def _kernels(x: Tensor) -> ModuleType | None:
    """The project's own that are on for such images; None where torch's operations do the work."""
    return next((module for module in (native, triton_norm) if module.takes_norm(x)), None)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C); a view where x is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _image(tokens: Tensor, size: torch.Size) -> Tensor:
    image: Tensor = tokens.unflatten(1, size)
    return image.permute(0, 3, 1, 2)


def _token_mean(values: Tensor) -> Tensor:
    """(B, N, C) -> (B, C). Eager, a matrix product sums several times as fast as ``mean`` over an inner axis."""
    if torch.compiler.is_compiling():
        return values.mean(1)
    batch, count, _ = values.shape
    return torch.bmm(values.new_full((1, 1, count), 1 / count).expand(batch, 1, count), values)[:, 0]


def _group_mean(values: Tensor) -> Tensor:
    """(B, C) -> (B, C): each channel gets the mean over its group."""
    grouped: Tensor = values.unflatten(1, (GROUPS, -1))
    return grouped.mean(-1, keepdim=True).expand_as(grouped).flatten(1)


def _normalise(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """x: (B, N, C) -> y like x, and a, b, mean, 1 / deviation of the images' channels, (4, B, C) float32."""
    values = x.float()
    centre = _token_mean(values)
    mean = _group_mean(centre)
    variance = _group_mean(_token_mean((values - centre[:, None]).square_()) + (centre - mean).square())
    rstd = torch.rsqrt(variance + EPS)
    a = rstd * weight.float()
    b = bias.float() - mean * a
    if scale is not None and shift is not None:
        factor = 1 + scale.float()
        a, b = a * factor, b * factor + shift.float()
    u = torch.addcmul(b[:, None], values, a[:, None])
    return (F.silu(u, inplace=True) if silu else u).to(x.dtype), torch.stack([a, b, mean, rstd])


def _grad_u(values: Tensor, grad: Tensor, a: Tensor, b: Tensor, silu: bool) -> Tensor:
    """Gradient before f, at u = a x + b."""
    if not silu:
        return grad.float()
    gradient: Tensor = torch.ops.aten.silu_backward(grad.float(), torch.addcmul(b[:, None], values, a[:, None]))
    return gradient


def _gradients(x: Tensor, grad: Tensor, statistics: Tensor, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient with respect to x, and means over the tokens of du and du * x_hat, (B, C)."""
    values, (a, b, mean, rstd) = x.float(), statistics.unbind()
    du = _grad_u(values, grad, a, b, silu)
    mean_du, mean_du_xhat = _token_mean(du), _token_mean((values - mean[:, None]).mul_(du)) * rstd
    gain = a / rstd
    slope = -rstd * rstd * _group_mean(mean_du_xhat * gain)
    offset = -rstd * _group_mean(mean_du * gain) - slope * mean
    grad_x = torch.addcmul(offset[:, None], values, slope[:, None]).addcmul_(du, a[:, None])
    return grad_x.to(x.dtype), mean_du, mean_du_xhat
