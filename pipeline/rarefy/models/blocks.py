"""Building blocks of the ADM networks: residual block, attention, pooling, resampling, time embedding.

Parameter names and shapes are those of openai/guided-diffusion's checkpoints. Layouts are our own: images stay
channels-last, attention works on (B, N, C) tokens, the time embedding is activated once for all blocks.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rarefy.fast.conv import Conv3x3
from rarefy.fast.cpu import native
from rarefy.fast.norm import group_norm, norm_act, plain_norm
from rarefy.fast.norm_conv import join, norm_act_conv, norm_act_conv_and_skip
from rarefy.fast.resample import mean2x2, upsample
from rarefy.models.config import NetworkConfig

M = TypeVar("M", bound=nn.Module)

FEW_TOKENS = 256  # up to where plain products beat the flash kernel on a CPU (benchmarks/kernels.py)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
    """Sinusoidal embedding: cosines, then sines. t: (B,) in original time steps, fractions allowed -> (B, dim)."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    args = t[:, None].float() * torch.exp(-math.log(max_period) * exponent)
    embedding = torch.cat([args.cos(), args.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


class Upsample(nn.Module):
    """Nearest 2x, then a 3x3 convolution if ``use_conv``."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = upsample(x)
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Strided 3x3 convolution if ``use_conv``, else a 2x2 mean."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op: nn.Module = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else Mean2x2()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.op(x)
        return h


class Mean2x2(nn.Module):
    """``nn.AvgPool2d(2)``."""

    def forward(self, x: Tensor) -> Tensor:
        return mean2x2(x)


class ResBlock(nn.Module):
    """Residual block with the time embedding as a bias or as scale and shift; ``resample`` makes it change size."""

    def __init__(self, channels: int, out_channels: int, config: NetworkConfig, resample: nn.Module | None = None):
        super().__init__()
        self.scale_shift = config.use_scale_shift_norm
        emb_channels = config.model_channels * 4
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), Conv3x3(channels, out_channels))
        self.resample = resample
        emb_out = 2 * out_channels if self.scale_shift else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_out))
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            zero_(Conv3x3(out_channels, out_channels)),
        )
        self.skip_connection: nn.Module = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor, beside: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W); emb: (B, 4 model_channels), already through SiLU.

        beside: an image of the last channels; x may then be of half its height and width, and is upsampled.
        """
        parts = [x] if beside is None else [x, beside]
        norm, _, conv = self.in_layers
        if self.resample is None:
            h, skipped = norm_act_conv_and_skip(parts, norm, conv, self.skip_connection)
        else:
            x = join(parts)
            h, skipped = conv(self.resample(norm_act(x, norm))), self.skip_connection(self.resample(x))
        _, linear = self.emb_layers
        emb_out = linear(emb.to(weight_of(linear).dtype))
        norm, _, dropout, conv = self.out_layers
        assert isinstance(dropout, nn.Dropout)
        if not self.scale_shift:
            return norm_act_conv(h + emb_out[..., None, None], norm, conv, residual=skipped, dropout=dropout)
        scale, shift = emb_out.chunk(2, dim=1)
        return norm_act_conv(h, norm, conv, scale, shift, skipped, dropout)


class AttentionBlock(nn.Module):
    """Spatial self-attention with both of the reference's channel orders in ``qkv``."""

    def __init__(self, channels: int, num_heads: int, num_head_channels: int, new_order: bool) -> None:
        super().__init__()
        self.num_heads = head_count(channels, num_heads, num_head_channels)
        self.new_order = new_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = plain_norm(x, self.norm).permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        h = self_attention(linear_1x1(tokens, self.qkv), self.num_heads, self.new_order)
        h = linear_1x1(h, self.proj_out).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return x + h


class AttentionPool(nn.Module):
    """CLIP-style pooling: the mean token, with a position each, attends to all; only its own query is computed."""

    def __init__(self, side: int, channels: int, num_head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.num_heads = channels // num_head_channels
        self.positional_embedding = nn.Parameter(normal(channels, side**2 + 1, std=channels**-0.5))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, side, side) -> (B, out_channels)."""
        channels = x.shape[1]
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.t().to(tokens.dtype)
        weight, bias = self.qkv_proj.weight[..., 0], self.qkv_proj.bias
        assert bias is not None
        query = F.linear(tokens[:, :1], weight[:channels], bias[:channels])
        k, v = F.linear(tokens, weight[channels:], bias[channels:]).chunk(2, dim=-1)
        q, k, v = (s.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for s in (query, k, v))
        h = attend(q, k, v).transpose(1, 2).flatten(1)
        return linear_1x1(h, self.c_proj)


def head_count(channels: int, num_heads: int, num_head_channels: int) -> int:
    """Number of attention heads; num_head_channels wins over num_heads where it is not -1."""
    if num_head_channels == -1:
        return num_heads
    if channels % num_head_channels:
        raise ValueError(f"num_head_channels: {num_head_channels} does not divide {channels} channels")
    return channels // num_head_channels


def linear_1x1(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A 1x1 convolution applied to the last axis. x: (..., C_in) -> (..., C_out)."""
    return F.linear(x, conv.weight[..., 0], conv.bias)


def split_heads(qkv: Tensor, num_heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3C) -> q, k, v of (B, heads, N, C / heads). New order: all q, all k, all v; legacy: q, k, v a head."""
    if new_order:
        q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)
    else:
        q, k, v = qkv.unflatten(-1, (num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
    return q, k, v


def self_attention(qkv: Tensor, num_heads: int, new_order: bool) -> Tensor:
    """Attention of all tokens to each other. qkv: (B, N, 3C), ordered as :func:`split_heads` says -> (B, N, C)."""
    if native.takes_attention(qkv, qkv.shape[-1] // 3 // num_heads):
        attended: Tensor = _Attention.apply(qkv, num_heads, new_order)  # type: ignore[no-untyped-call]
        return attended
    return attend(*split_heads(qkv, num_heads, new_order)).transpose(1, 2).flatten(2)


class _Attention(torch.autograd.Function):
    """The project's own kernel and its gradient."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, new_order: bool) -> Tensor:
        qkv = qkv.contiguous()
        out, lse = native.attention_forward(qkv, num_heads, new_order)
        ctx.save_for_backward(qkv, out, lse)
        ctx.heads = num_heads, new_order
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, lse = ctx.saved_tensors
        return native.attention_backward(qkv, out, lse, grads[0], *ctx.heads), None, None


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over (B, heads, N, d).

    On a CPU, plain matrix products for few tokens where a gradient is wanted or in reduced precision: the flash kernel
    is slow there. For more tokens it is faster, and keeps no weights of N x N for the backward pass. On a GPU its
    gradient adds up in an order of its own each time, unless asked not to, which torch.compile does not carry over.
    """
    wants_gradient = torch.is_grad_enabled() and q.requires_grad
    reduced = q.dtype in (torch.bfloat16, torch.float16)
    if q.device.type == "cpu" and q.shape[-2] <= FEW_TOKENS and (wants_gradient or reduced):
        return plain_attention(q, k, v)
    if q.is_cuda and wants_gradient and not torch.compiler.is_compiling():
        attended: Tensor = _RepeatableAttention.apply(q, k, v)  # type: ignore[no-untyped-call]
        return attended
    return F.scaled_dot_product_attention(q, k, v)


class _RepeatableAttention(torch.autograd.Function):
    """torch's fused attention with the same gradient each time: equal work gives equal bytes.

    The kernels have such a form, for which torch has a switch for the whole process alone, at which other operations
    fail: it is on for this gradient, which takes the forward again.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        torch.use_deterministic_algorithms(True)
        try:
            with torch.enable_grad():
                q, k, v = (part.detach().requires_grad_() for part in ctx.saved_tensors)
                return torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), grads[0])
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``attend`` by two matrix products."""
    weights: Tensor = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1)
    return weights @ v


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def normal(*shape: int, std: float = 1.0) -> Tensor:
    """Normal random numbers. On the meta device none: to draw them there torch imports its compiler, for a second."""
    values = torch.empty(shape)
    return values if values.is_meta else values.normal_(std=std)


def zero_(module: M) -> M:
    """Set every parameter of ``module`` to zero (the reference's initial state of each block's last layer)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
