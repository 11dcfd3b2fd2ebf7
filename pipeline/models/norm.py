"""Group normalisation fused with the per-sample scale and shift and the SiLU that follow it in ADM.

Two forms of one function, chosen by dtype:

- float32 and float64: torch's own ``group_norm``, the reference's numbers;
- bfloat16 and float16: float32 sums over the channels-last view, then one affine map and SiLU, forward and backward
  written out, since torch's own reduced-precision kernels dominate a small U-Net's time. Each of the four passes is a
  small function that :func:`set_compiled` puts under ``torch.compile`` (some seconds for the first call of a shape).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
EPS = 1e-5

_state = {"compiled": False}


def set_compiled(enabled: bool) -> None:
    """Choose whether the reduced-precision passes run under ``torch.compile`` (process-wide; off by default)."""
    _state["compiled"] = enabled


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
    if x.dtype in (torch.bfloat16, torch.float16):
        y: Tensor = _NormSiLU.apply(x, norm.weight, norm.bias, scale, shift)  # type: ignore[no-untyped-call]
        return y
    h = plain_norm(x, norm)
    if scale is not None and shift is not None:
        h = h * (1 + scale[..., None, None]) + shift[..., None, None]
    return F.silu(h)


def plain_norm(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    """group_norm(x) with at least float32 statistics, in x's dtype. x: (B, C, H, W)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    h = F.group_norm(x.to(wide), norm.num_groups, norm.weight.to(wide), norm.bias.to(wide), norm.eps)
    return h.to(x.dtype)


class _NormSiLU(torch.autograd.Function):
    """y = SiLU(a x + b), a and b of (B, C) from the group statistics, the weights and the scale and shift."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        tokens = _tokens(x)
        total, squares = _run(_moments)(tokens)
        count = tokens.shape[1] * (x.shape[1] // GROUPS)
        mean = _group_sum(total) / count
        rstd = torch.rsqrt((_group_sum(squares) / count - mean * mean).clamp(min=0) + EPS)
        factor = torch.ones_like(total) if scale is None else 1 + scale.float()
        a = rstd * weight.float() * factor
        b = bias.float() * factor - mean * a
        if shift is not None:
            b = b + shift.float()
        ctx.save_for_backward(tokens, a, b, mean, rstd, factor, weight, bias)
        ctx.has_scale, ctx.count, ctx.size = scale is not None, count, x.shape[2:]
        return _image(_run(_affine_silu)(tokens, a, b), x.shape[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, a, b, mean, rstd, factor, weight, bias = ctx.saved_tensors
        grad = _tokens(grads[0])
        sum_du, sum_du_x = _run(_grad_moments)(tokens, grad, a, b)
        sum_du_xhat = (sum_du_x - mean * sum_du) * rstd
        gain = weight.float() * factor
        mean_d = _group_sum(sum_du * gain) / ctx.count
        mean_d_xhat = _group_sum(sum_du_xhat * gain) / ctx.count
        slope = -rstd * rstd * mean_d_xhat
        offset = -rstd * mean_d - slope * mean
        grad_x = _image(_run(_grad_input)(tokens, grad, a, b, offset, slope), ctx.size)
        grad_weight = (sum_du_xhat * factor).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad_bias = (sum_du * factor).sum(0).to(bias.dtype) if ctx.needs_input_grad[2] else None
        if not ctx.has_scale:
            return grad_x, grad_weight, grad_bias, None, None
        grad_scale = (sum_du_xhat * weight.float() + sum_du * bias.float()).to(grads[0].dtype)
        return grad_x, grad_weight, grad_bias, grad_scale, sum_du.to(grads[0].dtype)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C); a view where x is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _image(tokens: Tensor, size: torch.Size) -> Tensor:
    image: Tensor = tokens.unflatten(1, size)
    return image.permute(0, 3, 1, 2)


def _group_sum(values: Tensor) -> Tensor:
    """(B, C) -> (B, C): each channel gets the sum over its group."""
    grouped: Tensor = values.unflatten(1, (GROUPS, -1))
    return grouped.sum(-1, keepdim=True).expand_as(grouped).flatten(1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    values = x.float()
    return values.sum(1), (values * values).sum(1)


def _affine_silu(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    u = x.float() * a[:, None] + b[:, None]
    return (u * torch.sigmoid(u)).to(x.dtype)


def _grad_u(x: Tensor, grad: Tensor, a: Tensor, b: Tensor) -> Tensor:
    u = x * a[:, None] + b[:, None]
    s = torch.sigmoid(u)
    return grad.float() * s * (1 + u * (1 - s))


def _grad_moments(x: Tensor, grad: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    values = x.float()
    du = _grad_u(values, grad, a, b)
    return du.sum(1), (du * values).sum(1)


def _grad_input(x: Tensor, grad: Tensor, a: Tensor, b: Tensor, offset: Tensor, slope: Tensor) -> Tensor:
    values = x.float()
    return (_grad_u(values, grad, a, b) * a[:, None] + offset[:, None] + values * slope[:, None]).to(x.dtype)


def _run(function: Callable[..., Any]) -> Callable[..., Any]:
    return _compiled(function) if _state["compiled"] else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(function, dynamic=False)
