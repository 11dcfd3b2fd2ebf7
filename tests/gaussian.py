"""Data whose every pixel is N(MEAN, STD^2): the exact eps, and where the probability flow leads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rarefy.diffusion.schedule import Schedule

MEAN, STD = 0.2, 0.05


class GaussianScore:
    """The data's exact eps. times: the time steps of all calls."""

    def __init__(self, schedule: Schedule) -> None:
        self.abar = schedule.alphas_cumprod.tolist()
        self.times: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(int(t[0]))
        abar = self.abar[self.times[-1]]
        variance = abar * STD**2 + 1 - abar
        return math.sqrt(1 - abar) * (x - math.sqrt(abar) * MEAN) / variance


def even_schedule(count: int) -> Schedule:
    """``count`` equal steps of half log-SNR from -3 to 9, where the last step is practically exact."""
    abar = torch.sigmoid(2 * torch.linspace(9, -3, count, dtype=torch.float64))
    previous = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    return Schedule(torch.arange(count), 1 - abar / previous)


def flow(x_t: Tensor, abar: float, mean: float | Tensor = MEAN) -> Tensor:
    """The image to which the probability flow of N(mean, STD^2) takes x_t."""
    return mean + (x_t - math.sqrt(abar) * mean) * STD / math.sqrt(abar * STD**2 + 1 - abar)
