"""Held-out images: none is trained on, and what is measured on them has closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_training import CPU, images
from torch import Tensor, nn

from rarefy.diffusion.schedule import make_schedule
from rarefy.errors import DataError
from rarefy.training import held_out
from rarefy.training.held_out import accuracies, class_accuracies, held_out_losses, without_held_out
from rarefy.training.losses import HybridLoss

SCHEDULE = make_schedule("cosine", 100)


def no_step(done: int, total: int) -> None:
    assert 0 < done <= total


def test_held_out_images_and_their_copies_are_left_out() -> None:
    data = images(20)
    data.images[7] = data.images[3]  # a copy, under whatever name
    chosen = without_held_out(data, images(20).take(np.array([3, 12])), no_step)
    assert chosen.rows.tolist() == [row for row in range(20) if row not in (3, 7, 12)]
    assert chosen.excluded == 3
    assert len(without_held_out(data, None, no_step)) == 20


def test_data_that_are_all_held_out_are_refused() -> None:
    with pytest.raises(DataError, match="data: all 20 images are held out"):
        without_held_out(images(20), images(20), no_step)


class Zero(nn.Module):
    """Predicts no noise and remembers the steps that it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor, self.steps = nn.Parameter(torch.zeros(1)), list[Tensor]()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.steps.append(t)
        return torch.zeros_like(x)


def test_the_held_out_loss_has_fixed_noises_and_evenly_spread_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that predicts zero has the noise's mean square as its loss, which is one."""
    monkeypatch.setattr(held_out, "BATCH_PIXELS", 30 * 64)
    network, loss = Zero(), HybridLoss(SCHEDULE, CPU)
    first, again = (held_out_losses(network, loss, images(100)) for _ in range(2))
    assert first == again and first.keys() == {"held_out_loss", "held_out_mse"}
    assert first["held_out_mse"] == pytest.approx(1, abs=4 * math.sqrt(2 / (100 * 64)))
    assert torch.cat(network.steps[: len(network.steps) // 2]).tolist() == list(range(100))
    assert max(map(len, network.steps)) == 30


class Brightness(nn.Module):
    """Says class 3 for every image whose right border is bright, else class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.one_hot((x[..., -1].mean((1, 2)) > 0.3).long() * 3, 4).float()


def test_accuracies_are_at_fixed_parts_of_the_chain_and_by_class() -> None:
    data, network = images(40), Brightness()
    measured = accuracies(network, data, SCHEDULE, clean=False)
    assert list(measured) == ["t=0", "t=30", "t=50", "t=70"]
    assert measured["t=0"] == 0.5
    assert list(accuracies(network, data, SCHEDULE, clean=True)) == ["t=0"]
    assert class_accuracies(network, data, SCHEDULE) == {"0": 1.0, "1": 0.0, "2": 0.0, "3": 1.0}
