"""Distances in two steps: estimates with a proven error bound for all pairs, exact values for the few that need them.

A neighbour search compares N x M distances with a few thresholds, and nearly all distances are far from every
threshold. All products of the centred rows are therefore computed in bfloat16 if the processor supports it in hardware
(float32 otherwise). Only the pairs that the error bound leaves undecided are computed again, as |a - b| in float32.
The result equals that of exact distances and never depends on the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32  # columns per group; only the minimum of each group is used to find a row's threshold
REFINE_ELEMENTS = 1 << 18  # elements gathered at a time for exact distances: 1 MiB per side stays in the cache
SKETCH_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Sketch:
    """The original rows (N, D) and what is needed to estimate their distances.

    rounded (N, D): rows minus ``center``, rounded; norms (N,): squared norms of the centred rows; slack: the largest
    relative norm of the rounding error.
    """

    rows: Tensor
    center: Tensor
    rounded: Tensor
    norms: Tensor
    slack: float


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CPUs that multiply it in hardware; GPUs may accumulate in bfloat16, which no bound covers."""
    hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if device.type == "cpu" and hardware else torch.float32


def sketch(rows: Tensor, center: Tensor, dtype: torch.dtype) -> Sketch:
    """Centre and round float32 rows (N, D)."""
    rounded, norms, slack = torch.empty_like(rows, dtype=dtype), torch.empty(len(rows), device=rows.device), 0.0
    for start in range(0, len(rows), SKETCH_ROWS):
        part = slice(start, start + SKETCH_ROWS)
        # Distances do not depend on the origin, and the bound is tightest around the mean.
        centred = rows[part] - center
        rounded[part] = centred
        norms[part] = centred.square().sum(dim=1)
        lost = (centred - rounded[part].float()).square().sum(dim=1)
        slack = max(slack, float((lost / norms[part].clamp_min(1e-30)).max()))
    return Sketch(rows, center, rounded, norms, slack**0.5)


def error_share(first: Sketch, second: Sketch) -> float:
    """c such that every estimated squared distance is within c (|a|^2 + |b|^2) of the true one, for centred a and b.

    Cauchy-Schwarz bounds the effect of rounding the rows; 2^-8 (bfloat16) or 2^-24 (float32) covers rounding the
    product, D 2^-24 its summation, and 2 |a| |b| <= |a|^2 + |b|^2. The last 1e-5 covers later float32 sums.
    """
    unit = 2.0**-8 if first.rounded.dtype == torch.bfloat16 else 2.0**-24
    inputs = first.slack + second.slack + first.slack * second.slack
    return inputs + unit * (1 + inputs) + first.rows.shape[1] * 2.0**-24 + 1e-5


def exact_distances(first: Tensor, second: Tensor, pairs: tuple[Tensor, Tensor]) -> Tensor:
    """Euclidean distances (P,) of first[i] and second[j] for pairs (i, j), in chunks."""
    i, j = pairs
    distances = torch.empty(len(i), device=first.device)
    step = max(1, REFINE_ELEMENTS // first.shape[1])
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        gap = first.index_select(0, i[part]).sub_(second.index_select(0, j[part]))
        distances[part] = torch.linalg.vector_norm(gap, dim=1)
    return distances


def kth_bound(upper: Tensor, k: int) -> Tensor:
    """(R,) an upper bound of the k-th smallest entry of each row of ``upper`` (R, M), close to it.

    It is the k-th smallest of the minima of disjoint groups of columns, which takes one pass over the columns.
    """
    columns = upper.shape[1]
    size = max(1, min(GROUP, columns // (4 * k)))
    groups = columns // size
    minima = upper[:, : groups * size].view(len(upper), size, groups).amin(dim=1)
    return minima.topk(k, dim=1, largest=False).values.amax(dim=1)


def smallest(pairs: tuple[Tensor, Tensor], distances: Tensor, rows: int, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest distances per row and their columns, ascending, ties by column: (rows, k) each.

    pairs: (row, column), at least k per row, columns ascending within a row.
    """
    i, j = pairs
    order = distances.argsort(stable=True)
    order = order[i[order].argsort(stable=True)]
    starts = torch.bincount(i, minlength=rows).cumsum(0)
    first = torch.cat([starts.new_zeros(1), starts[:-1]])
    place = first[:, None] + torch.arange(k, device=i.device)
    chosen = order[place]
    return distances[chosen], j[chosen]
