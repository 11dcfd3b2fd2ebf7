"""Distances of all pairs of rows, tile by tile: bounds from one product, exact values for the few that need them.

A neighbour search compares N x M distances with a few thresholds, and nearly all distances are far from every
threshold. A tile holds |a|^2 + |b|^2 - 2 a.b in float32, less a proven bound of the rounding. Only the pairs that this
bound leaves undecided are computed again, as |a - b|. The result equals that of exact distances and never depends on
the rounding of the products.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE_ROWS = 2048  # a tile of float32 takes 16 MiB
GPU_TILE_ROWS = 8192
WORD = 8  # flags read at a time
GROUP = 32  # columns per group; only the minimum of each group is used to find a row's threshold
REFINE_ELEMENTS = 1 << 18  # elements gathered at a time for exact distances: 1 MiB per side stays in the cache


@dataclass(frozen=True, eq=False)
class PointSet:
    """rows (N, D); center (D,): near their mean; norms (N,): squared norms of rows minus center."""

    rows: Tensor
    center: Tensor
    norms: Tensor

    def centred(self, part: slice) -> Tensor:
        return self.rows[part] - self.center


@dataclass(frozen=True, eq=False)
class Tile:
    """lower (R, C): lower bounds of the squared distances of first[rows] and second[columns].

    slack_rows (R,), slack_columns (C,): lower + slack_rows + slack_columns is an upper bound.
    """

    rows: slice
    columns: slice
    lower: Tensor
    slack_rows: Tensor
    slack_columns: Tensor


def point_set(rows: Tensor, center: Tensor) -> PointSet:
    """Rows (N, D) with their squared norms. Distances do not depend on the centre; near it the bounds are tightest."""
    norms = torch.empty(len(rows), device=rows.device)
    for part in _parts(rows):
        norms[part] = (rows[part] - center).square_().sum(dim=1)
    return PointSet(rows, center, norms)


def tiles(first: PointSet, second: PointSet) -> Iterator[Tile]:
    """All tiles in order, those of one set with itself only on and above the diagonal. A tile is valid until the next.

    Both sets have the same centre.
    """
    share = error_share(first.rows.shape[1])
    buffer = torch.empty(min(len(first.rows), _step(first.rows)), min(len(second.rows), _step(second.rows)))
    buffer = buffer.to(first.rows.device)
    for rows in _parts(first.rows):
        above = (1 - share) * first.norms[rows, None]
        left = first.centred(rows)
        for columns in _parts(second.rows):
            if first is second and columns.start < rows.start:
                continue
            norms = second.norms[columns]
            lower = buffer.view(-1)[: len(left) * len(norms)].view(len(left), len(norms))
            torch.addmm((1 - share) * norms, left, second.centred(columns).T, alpha=-2, out=lower)
            yield Tile(rows, columns, lower.add_(above), 2 * share * first.norms[rows], 2 * share * norms)


def error_share(dim: int) -> float:
    """c such that every squared distance in float32 is within c (|a|^2 + |b|^2) of the true one, for centred a and b.

    D 2^-24 covers the sum of the product, since 2 |a| |b| <= |a|^2 + |b|^2. The 1e-5 covers all other float32 sums.
    """
    return dim * 2.0**-24 + 1e-5


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


class Nearest:
    """The k nearest columns of each of N rows, among the tiles so far: distances, index (N, k), nearest first."""

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self.distances = torch.full((rows, k), torch.inf, device=device)
        self.index = torch.full((rows, k), -1, device=device)

    def reach(self, tile: Tile, dim: int = 1) -> Tensor:
        """(R,) squared distance beyond which no column of the tile can be among a row's k nearest.

        With dim = 0 columns and rows change places: (C,).
        """
        part, own, others = (tile.columns, tile.slack_columns, tile.slack_rows)
        if dim == 1:
            part, own, others = (tile.rows, tile.slack_rows, tile.slack_columns)
        kth = self.distances[part, -1]
        among = _kth_bound(tile.lower, self.distances.shape[1], dim) + own + others.max()
        # Ties go to the first column, so nothing can displace k duplicates.
        return torch.where(kth > 0, torch.minimum(kth.square() * (1 + 1e-5), among), -torch.inf)

    def add(self, part: slice, pairs: tuple[Tensor, Tensor], distances: Tensor) -> None:
        """Merge pairs (row of the part, column) with their distances; the columns are new and ascend in each row."""
        known, k = self.distances[part], self.distances.shape[1]
        i = torch.cat([torch.arange(len(known), device=known.device).repeat_interleave(k), pairs[0]])
        j = torch.cat([self.index[part].flatten(), pairs[1]])
        merged = torch.cat([known.flatten(), distances])
        order = merged.argsort(stable=True)
        order = order[i[order].argsort(stable=True)]
        counts = torch.bincount(i, minlength=len(known))
        chosen = order[(counts.cumsum(0) - counts)[:, None] + torch.arange(k, device=known.device)]
        self.distances[part], self.index[part] = merged[chosen], j[chosen]


def true_pairs(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the True values of a contiguous mask (R, C), in order; quick where they are few."""
    if mask.numel() % WORD:
        i, j = mask.nonzero(as_tuple=True)
        return i, j
    words = mask.view(-1).view(torch.int64).nonzero()[:, 0]
    word, place = mask.view(-1, WORD)[words].nonzero(as_tuple=True)
    flat = words[word] * WORD + place
    return flat // mask.shape[1], flat % mask.shape[1]


def _kth_bound(lower: Tensor, k: int, dim: int) -> Tensor:
    """A value that at least k entries of ``lower`` along ``dim`` do not exceed, close to the k-th smallest.

    It is the k-th smallest of the minima of disjoint groups of entries, which takes one pass.
    """
    count = lower.shape[dim]
    if count < k:
        return torch.full((lower.shape[1 - dim],), torch.inf, device=lower.device)
    size = max(1, min(GROUP, count // (4 * k)))
    groups = count // size
    minima: Tensor = lower.narrow(dim, 0, groups * size).unflatten(dim, (size, groups)).amin(dim=dim)
    return minima.topk(k, dim=dim, largest=False).values.amax(dim)


def _step(rows: Tensor) -> int:
    return GPU_TILE_ROWS if rows.is_cuda else TILE_ROWS


def _parts(rows: Tensor) -> Iterator[slice]:
    step = _step(rows)
    for start in range(0, len(rows), step):
        yield slice(start, min(start + step, len(rows)))
