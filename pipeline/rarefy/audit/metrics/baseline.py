"""The real baseline: what held-out real images score, over disjoint draws of as many images as were measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from rarefy.audit.metrics.bootstrap import UPPER, Estimate

# With fewer draws, their spread is too uncertain: the first draw's own interval is used.
FEWEST_DRAWS = 5


@dataclass(frozen=True)
class Baseline:
    """value: the mean over the draws; interval: 95% of what one such draw scores; spread: their standard deviation.

    interval, spread: None where unknown; draws: their number.
    """

    value: float
    interval: list[float] | None
    spread: float | None
    draws: int


def summarize(draws: Sequence[Estimate], fraction: bool) -> Baseline:
    """One metric's baseline from its draws, the first of which has replicates if there are fewer than five.

    With five or more, the interval is Student's prediction interval for another draw. fraction: it ends at 0 and 1.
    """
    values, first = np.array([draw.value for draw in draws]), draws[0]
    mean, interval = float(values.mean()), first.interval
    spread = float(values.std(ddof=1)) if len(values) > 1 else None
    if spread is not None and len(values) >= FEWEST_DRAWS:
        half = float(t.ppf(UPPER, len(values) - 1)) * spread * float(np.sqrt(1 + 1 / len(values)))
        interval = [mean - half, mean + half]
    elif interval is not None:
        interval = [edge + mean - first.value for edge in interval]
    if interval is not None and fraction:
        interval = [min(max(edge, 0.0), 1.0) for edge in interval]
    return Baseline(mean, interval, spread, len(values))
