"""The layers of the ADM networks: residual block, attention, pooling, resampling, time embedding.

Parameter names and shapes are those of openai/guided-diffusion.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rarefy.models.config import GROUPS, NetworkConfig

M = TypeVar("M", bound=nn.Module)


class ResBlock(nn.Module):
    """Residual block that adds the time embedding, or applies it as scale and shift (``use_scale_shift_norm``).

    resample: an Upsample or Downsample layer applied on both paths, for blocks that change the image size.
    """

    def __init__(self, channels: int, out_channels: int, config: NetworkConfig, resample: nn.Module | None = None):
        super().__init__()
        self.scale_shift = config.use_scale_shift_norm
        emb_channels = config.model_channels * 4
        self.in_layers = nn.Sequential(group_norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.resample = resample
        emb_out = 2 * out_channels if self.scale_shift else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, emb_out))
        self.out_layers = nn.Sequential(
            group_norm(out_channels),
            nn.SiLU(),
            nn.Dropout(config.dropout),
            zero_(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection: nn.Module = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x: (B, C, H, W); emb: (B, 4 model_channels) -> (B, out_channels, H', W')."""
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = conv(h)
        emb_out = self.emb_layers(emb)[..., None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = emb_out.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb_out)
        for layer in rest:
            h = layer(h)
        y: Tensor = self.skip_connection(x) + h
        return y


class AttentionBlock(nn.Module):
    """Spatial self-attention. new_order: ``qkv`` holds all queries, all keys, all values; else q, k, v of each head."""

    def __init__(self, channels: int, num_heads: int, num_head_channels: int, new_order: bool) -> None:
        super().__init__()
        self.num_heads = head_count(channels, num_heads, num_head_channels)
        self.new_order = new_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zero_(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> the same shape."""
        tokens = x.flatten(2)
        h = attention(self.qkv(self.norm(tokens)), self.num_heads, self.new_order)
        y: Tensor = tokens + self.proj_out(h)
        return y.reshape(x.shape)


class AttentionPool(nn.Module):
    """Attention pooling as in CLIP: the output is the mean token after attention over all tokens."""

    def __init__(self, side: int, channels: int, num_head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.num_heads = channels // num_head_channels
        self.positional_embedding = nn.Parameter(normal(channels, side**2 + 1, std=channels**-0.5))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, side, side) -> (B, out_channels)."""
        tokens = x.flatten(2)
        tokens = torch.cat([tokens.mean(dim=-1, keepdim=True), tokens], dim=-1) + self.positional_embedding
        pooled: Tensor = self.c_proj(attention(self.qkv_proj(tokens), self.num_heads, new_order=True))
        return pooled[..., 0]


class Upsample(nn.Module):
    """Nearest 2x, then a 3x3 convolution if ``use_conv``."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if use_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Downsample(nn.Module):
    """Strided 3x3 convolution if ``use_conv``, else a 2x2 mean."""

    def __init__(self, channels: int, use_conv: bool) -> None:
        super().__init__()
        self.op: nn.Module = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if use_conv else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 2H, 2W) -> (B, C, H, W)."""
        h: Tensor = self.op(x)
        return h


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000) -> Tensor:
    """Sinusoidal embedding: cosines, then sines. t: (B,) in original time steps, fractions allowed -> (B, dim)."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    args = t[:, None].float() * torch.exp(-math.log(max_period) * exponent)
    embedding = torch.cat([args.cos(), args.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


def attention(qkv: Tensor, num_heads: int, new_order: bool) -> Tensor:
    """Attention between all tokens. qkv: (B, 3C, N), in the order that AttentionBlock describes -> (B, C, N)."""
    if new_order:
        q, k, v = qkv.unflatten(1, (3, num_heads, -1)).unbind(1)
    else:
        q, k, v = qkv.unflatten(1, (num_heads, 3, -1)).unbind(2)
    h: Tensor = F.scaled_dot_product_attention(q.mT, k.mT, v.mT)
    return h.mT.flatten(1, 2)


def head_count(channels: int, num_heads: int, num_head_channels: int) -> int:
    """Number of attention heads: ``num_heads``, or given by ``num_head_channels`` unless that is -1."""
    if num_head_channels == -1:
        return num_heads
    if channels % num_head_channels:
        raise ValueError(f"num_head_channels: {num_head_channels} does not divide {channels} channels")
    return channels // num_head_channels


def group_norm(channels: int) -> nn.GroupNorm:
    """The reference's ``normalization(channels)``: 32 groups."""
    if channels % GROUPS:
        raise ValueError(f"channels: {channels} is not a multiple of {GROUPS}, the number of normalisation groups")
    return nn.GroupNorm(GROUPS, channels)


def normal(*shape: int, std: float = 1.0) -> Tensor:
    """Normal random numbers; undefined on the meta device, where drawing them would import torch's compiler."""
    values = torch.empty(shape)
    return values if values.is_meta else values.normal_(std=std)


def zero_(module: M) -> M:
    """Set all parameters of ``module`` to zero (the reference's initial state of each block's last layer)."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
