"""Finds the best columns for each row of a score matrix that is too large to exist at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ROWS, COLUMNS = 1024, 16_384  # of a block of scores: 64 MiB of float32
EXACT_ROWS = 256  # compared exactly at a time

Step = Callable[[int, int], None]
Scores = Callable[[slice, slice], Tensor]


def top_columns(
    scores: Scores, shape: tuple[int, int], k: int, itself: NDArray[np.int64] | None = None, step: Step | None = None
) -> NDArray[np.int64]:
    """The k columns with the highest scores for each row: int64 (N, k), best first.

    scores(rows, columns): a block of the matrix, on any device; shape: (N, M) of the matrix, with k <= M; itself (N,):
    a column of each row that does not count, if k < M, or -1; step: called with the number of rows done and their
    total.
    """
    (rows, columns), parts = shape, []
    starts = range(0, columns, COLUMNS)
    for first in range(0, rows, ROWS):
        row_part = slice(first, min(first + ROWS, rows))
        best, places = torch.empty(0), torch.empty(0, dtype=torch.int64)
        for start in starts:
            part = slice(start, min(start + COLUMNS, columns))
            block = scores(row_part, part)
            if itself is not None:
                _hide(block, itself[row_part], part)
            found = block.topk(min(k, block.shape[1]), dim=1)
            values, indices = found.values.cpu(), found.indices.cpu() + start
            if start:
                values, indices = torch.cat([best, values], 1), torch.cat([places, indices], 1)
                best, chosen = values.topk(min(k, values.shape[1]), dim=1)
                places = indices.gather(1, chosen)
            else:
                best, places = values, indices
        parts.append(places)
        if step is not None:
            step(row_part.stop, rows)
    return torch.cat(parts).numpy()


def _hide(block: Tensor, itself: NDArray[np.int64], part: slice) -> None:
    """Give each row's own column the lowest score."""
    inside = np.flatnonzero((itself >= part.start) & (itself < part.stop))
    block[torch.from_numpy(inside), torch.from_numpy(itself[inside] - part.start)] = -torch.inf


def nearest_rows(
    rows: NDArray[np.floating],
    others: NDArray[np.floating],
    k: int,
    itself: NDArray[np.int64] | None = None,
    device: str = "cpu",
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Euclidean distances (N, K) of each row (N, D) to the nearest of the others (M, D), ascending, and which they are.

    K: k, or as many as there are; itself: as in ``top_columns``; float16 is converted block by block.
    """

    def scores(row_part: slice, part: slice) -> Tensor:
        block = _floats(others[part], device)
        return torch.addmm(block.square().sum(dim=1), _floats(rows[row_part], device), block.T, beta=-1, alpha=2)

    there = min(k, len(others) - (itself is not None))
    places = top_columns(scores, (len(rows), len(others)), there, itself)
    distance = np.empty(places.shape)
    for start in range(0, len(rows), EXACT_ROWS):  # the scores lose small distances to rounding
        part = slice(start, start + EXACT_ROWS)
        gaps = _floats(others[places[part]], device) - _floats(rows[part], device)[:, None]
        distance[part] = gaps.norm(dim=2).double().cpu().numpy()
    order = distance.argsort(axis=1, kind="stable")
    return np.take_along_axis(distance, order, 1), np.take_along_axis(places, order, 1)


def _floats(rows: NDArray[np.floating], device: str) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).to(device).float()
