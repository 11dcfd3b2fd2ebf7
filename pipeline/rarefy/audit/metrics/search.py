"""Distances in two steps: rounded products with a proven error bound first, exact ones for the few pairs that matter.

A k-NN pass compares N x M distances with a few thresholds, and nearly all of them are far from every threshold. So the
products of the centred rows are taken in bfloat16 where the processor multiplies it in hardware (float32 elsewhere),
and only pairs whose bound does not decide are computed again, as |a - b| in float32. The answer is that of exact
distances; it never depends on the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32  # columns of which only the nearest takes part in finding a row's threshold
REFINE_ELEMENTS = 1 << 18  # numbers gathered at a time for exact distances: 1 MiB a side stays in the cache
SKETCH_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Sketch:
    """Rows as they are (N, D), and what estimates their distances.

    rounded (N, D): rows less ``center``, rounded; norms (N,): squared lengths of the centred rows; slack: largest
    relative length of what the rounding took away.
    """

    rows: Tensor
    center: Tensor
    rounded: Tensor
    norms: Tensor
    slack: float


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a processor that multiplies it in hardware; GPUs may sum it in bfloat16, which no bound covers."""
    hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if device.type == "cpu" and hardware else torch.float32


def sketch(rows: Tensor, center: Tensor, dtype: torch.dtype) -> Sketch:
    """Centre and round float32 rows (N, D)."""
    rounded, norms, slack = torch.empty_like(rows, dtype=dtype), torch.empty(len(rows), device=rows.device), 0.0
    for start in range(0, len(rows), SKETCH_ROWS):
        part = slice(start, start + SKETCH_ROWS)
        # Distances do not move with the origin, and the bound is smallest around the mean.
        centred = rows[part] - center
        rounded[part] = centred
        norms[part] = centred.square().sum(dim=1)
        lost = (centred - rounded[part].float()).square().sum(dim=1)
        slack = max(slack, float((lost / norms[part].clamp_min(1e-30)).max()))
    return Sketch(rows, center, rounded, norms, slack**0.5)


def error_share(first: Sketch, second: Sketch) -> float:
    """c such that every estimated squared distance is within c (|a|^2 + |b|^2) of the true one, a and b centred.

    Cauchy-Schwarz bounds what rounding the rows does to a product, 2^-8 (bfloat16) or 2^-24 rounds the product itself,
    D 2^-24 its summation, and 2 |a| |b| <= |a|^2 + |b|^2. The last 1e-5 is for the float32 sums made of it.
    """
    unit = 2.0**-8 if first.rounded.dtype == torch.bfloat16 else 2.0**-24
    inputs = first.slack + second.slack + first.slack * second.slack
    return inputs + unit * (1 + inputs) + first.rows.shape[1] * 2.0**-24 + 1e-5


def exact_distances(first: Tensor, second: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Euclidean distances (P,) of first[i] and second[j] for pairs (i, j), some at a time."""
    i, j = pairs
    found = torch.empty(len(i), device=first.device)
    step = max(1, REFINE_ELEMENTS // first.shape[1])
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        gap = first.index_select(0, i[part]).sub_(second.index_select(0, j[part]))
        found[part] = torch.linalg.vector_norm(gap, dim=1)
    return found


def kth_bound(upper: Tensor, k: int) -> Tensor:
    """(R,) a number that at least k entries of each row of ``upper`` (R, M) do not exceed, close to the k-th smallest.

    The k-th smallest of the minima of disjoint groups of columns: reading every column once is all it takes.
    """
    columns = upper.shape[1]
    size = max(1, min(GROUP, columns // (4 * k)))
    groups = columns // size
    minima = upper[:, : groups * size].view(len(upper), size, groups).amin(dim=1)
    return minima.topk(k, dim=1, largest=False).values.amax(dim=1)


def smallest(pairs: tuple[Tensor, Tensor], distances: Tensor, rows: int, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest distances of each of ``rows`` rows and their columns, ascending, ties by column: (rows, k) each.

    pairs: (row, column), at least k a row, columns ascending within a row.
    """
    i, j = pairs
    order = distances.argsort(stable=True)
    order = order[i[order].argsort(stable=True)]
    starts = torch.bincount(i, minlength=rows).cumsum(0)
    first = torch.cat([starts.new_zeros(1), starts[:-1]])
    place = first[:, None] + torch.arange(k, device=i.device)
    chosen = order[place]
    return distances[chosen], j[chosen]
