"""Group normalisation on GPUs by rarefy's Triton kernels: three per pass, forward and backward.

Triton comes with torch's builds for GPUs. It compiles the kernels at first use, in a few seconds, and caches them.
Without it torch's operations do the same work.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rarefy.device import has_triton
from rarefy.fast.cpu.native import DTYPES

EPS = 1e-5  # nn.GroupNorm's default
TILE, STATISTICS_TILE = 4096, 8192  # values per program; the latter for the kernel that hardly computes
MOST_CHUNKS = 64  # of an image's tokens, which one program merges

_has_triton = functools.cache(has_triton)


def supports_norm(x: Tensor) -> bool:
    """Whether :func:`norm_forward` supports such images."""
    return x.is_cuda and x.dtype in DTYPES and _has_triton(x.device)


@dataclass(frozen=True)
class _Cut:
    """Division of an image: columns of ``channels`` channels, tiles of ``rows`` tokens, chunks of ``tiles`` tiles."""

    channels: int
    rows: int
    tiles: int
    chunks: int

    @staticmethod
    def of(tokens: int, channels: int, tile: int) -> _Cut:
        """tile: number of values in a tile."""
        width = min(channels & -channels, 128)  # the largest power of two that divides them: 32 at least
        rows = tile // width
        tiles = -(-tokens // (rows * MOST_CHUNKS))
        return _Cut(width, rows, tiles, -(-tokens // (rows * tiles)))


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, groups: int, silu: bool
) -> tuple[Tensor, Tensor]:
    """Like ``native.norm_forward``: x, (B, N, C) contiguous -> y, and a, b, mean, 1 / deviation, (4, B, C) float32."""
    kernels = _kernels()
    (batch, tokens, channels), y = x.shape, torch.empty_like(x)
    cut, tile = (_Cut.of(tokens, channels, values) for values in (STATISTICS_TILE, TILE))
    parts = x.new_empty((2, batch, cut.chunks, channels), dtype=torch.float32)
    statistics = x.new_empty((4, batch, channels), dtype=torch.float32)
    none = scale is None or shift is None
    scale, shift = (weight if none else _rows(v) for v in (scale, shift))
    strides = (0, 0) if none else (scale.stride(0), shift.stride(0))
    with torch.cuda.device_of(x):
        size = (tokens, channels)
        columns = channels // cut.channels
        kernels.chunk_statistics[batch, cut.chunks, columns](
            x, parts[0], parts[1], *size, TILES=cut.tiles, ROWS=cut.rows, CHANNELS=cut.channels
        )
        kernels.coefficients[batch, groups](
            parts[0], parts[1], weight, bias, scale, shift, statistics,
            *size, cut.chunks, cut.rows * cut.tiles, *strides, EPS,
            SCALED=not none, CHUNKS=_power(cut.chunks), WIDTH=_power(channels // groups),
        )  # fmt: skip
        kernels.apply[batch, -(-tokens // tile.rows), columns](
            x, y, statistics, *size, SILU=silu, ROWS=tile.rows, CHANNELS=tile.channels
        )
    return y, statistics


def norm_backward(
    x: Tensor, grad: Tensor, statistics: Tensor, groups: int, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """grad: like x -> the gradient with respect to x, and means over the tokens of du and du * x_hat, (B, C)."""
    kernels = _kernels()
    (batch, tokens, channels), grad_x = x.shape, torch.empty_like(x)
    cut = _Cut.of(tokens, channels, TILE)
    sums = x.new_empty((2, batch, cut.chunks, channels), dtype=torch.float32)
    gradients = torch.empty_like(statistics)
    with torch.cuda.device_of(x):
        size = (tokens, channels)
        columns = channels // cut.channels
        kernels.chunk_gradients[batch, cut.chunks, columns](
            x, grad, statistics, sums, *size, SILU=silu, TILES=cut.tiles, ROWS=cut.rows, CHANNELS=cut.channels
        )
        kernels.gradient_coefficients[batch, groups](
            sums, statistics, gradients, *size, cut.chunks, CHUNKS=_power(cut.chunks), WIDTH=_power(channels // groups)
        )
        kernels.gradient_input[batch, -(-tokens // cut.rows), columns](
            x, grad, statistics, gradients, grad_x, *size, SILU=silu, ROWS=cut.rows, CHANNELS=cut.channels
        )
    return grad_x, gradients[0], gradients[1]


def _kernels() -> Any:
    """Imported only where they run: a machine without a GPU has no Triton."""
    from rarefy.fast.gpu import kernels as triton_kernels

    return triton_kernels


def _rows(v: Tensor | None) -> Tensor:
    """(B, C), with contiguous channels."""
    assert v is not None
    return v if v.stride(1) == 1 else v.contiguous()


def _power(count: int) -> int:
    """The smallest power of two that is at least ``count``."""
    return 1 << (count - 1).bit_length()
