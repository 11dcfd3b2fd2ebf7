"""The losses compared with closed forms and brute force, and what a small network learns from them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_training import CPU, network_and_loss
from torch import Tensor, nn

from rarefy.diffusion.schedule import Schedule, make_schedule
from rarefy.images import LabelledImages
from rarefy.training.data import Batch, TrainingSet, make_batch
from rarefy.training.losses import ClassifierLoss, HybridLoss
from rarefy.training.settings import TrainSettings
from rarefy.training.state import start
from rarefy.training.step import train_step

SCHEDULE = make_schedule("cosine", 100)


def one_step(beta: float) -> Schedule:
    """A chain of a single step, so that t = 0 always."""
    return Schedule(torch.tensor([0]), torch.tensor([beta], dtype=torch.float64))


def batch(seed: int = 0, count: int = 64) -> Batch:
    g = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(count, 1, 8, 8, generator=g) * 2 - 1
    return Batch(x_0, torch.arange(count) % 4, g)


class Oracle(nn.Module):
    """Knows x_0, so it can answer with the true eps; ``v`` picks the variance."""

    def __init__(self, x_0: Tensor, v: float) -> None:
        super().__init__()
        self.x_0, self.v = x_0, v

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        abar = SCHEDULE.alphas_cumprod.float()[t][:, None, None, None]
        eps = (x - abar.sqrt() * self.x_0) / (1 - abar).sqrt()
        return torch.cat([eps, torch.full_like(eps, self.v)], dim=1)


def test_a_perfect_prediction_costs_only_the_bits_at_t_0() -> None:
    """v = -1 is the true posterior variance, so the KL vanishes; only t = 0 has a likelihood."""
    b = batch()
    losses = HybridLoss(SCHEDULE, CPU)(Oracle(b.x_0, v=-1.0), b)
    assert losses["mse"].item() < 1e-6
    assert losses["vlb"].item() < 0.2


def test_a_wrong_variance_costs_the_kl_of_two_gaussians() -> None:
    """With the exact mean the bound is 0.5 (exp(-g) - 1 + g) nats, g = log beta - log beta~ at v = 1."""
    b = batch(seed=1)
    replay = torch.Generator()
    replay.set_state(b.generator.get_state())
    k = torch.randint(100, (64,), generator=replay)
    assert (k > 0).all()
    losses = HybridLoss(SCHEDULE, CPU)(Oracle(b.x_0, v=1.0), b)
    gap = (SCHEDULE.betas.log() - SCHEDULE.posterior_log_variance)[k]
    kl = 0.5 * ((-gap).exp() - 1 + gap) / math.log(2)
    assert losses["vlb"].item() == pytest.approx(kl.mean().item(), rel=1e-3)


def integral(low: NDArray[np.float64], high: NDArray[np.float64], mean: NDArray[np.float64], std: float) -> NDArray:
    """The normal distribution's probability between two bounds, by the midpoint rule."""
    parts = 20_000
    x = low + (high - low) * (np.arange(parts)[:, None] + 0.5) / parts
    density = np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    return density.mean(0) * (high - low)


def test_the_bound_at_t_0_is_the_probability_of_each_8_bit_value() -> None:
    """All 256 levels as pixels, and a prediction that misses each by up to 3 levels."""
    beta = 1e-4
    schedule = one_step(beta)
    levels = torch.arange(256) / 127.5 - 1
    b = Batch(levels.view(1, 1, 16, 16), torch.zeros(1, dtype=torch.int64), torch.Generator().manual_seed(0))
    mean = (levels + torch.linspace(-3, 3, 256) / 127.5).clamp(-1, 1).view(1, 1, 16, 16)

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        eps = (x - math.sqrt(1 - beta) * mean) / math.sqrt(beta)
        return torch.cat([eps, torch.zeros_like(eps)], dim=1)

    losses = HybridLoss(schedule, CPU)(model, b)  # type: ignore[arg-type]
    x, m = levels.double().numpy(), mean.flatten().double().numpy()
    low, high = np.where(x < -0.999, -1.5, x - 1 / 255), np.where(x > 0.999, 1.5, x + 1 / 255)
    bits = -np.log2(integral(low, high, m, math.sqrt(beta))).mean()
    assert bits > 0.1
    assert losses["vlb"].item() == pytest.approx(bits, rel=1e-3)


def test_the_bound_does_not_train_the_mean() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eps, self.v = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
            return torch.cat([self.eps.expand_as(x), self.v.expand_as(x)], dim=1)

    net = Net()
    losses = HybridLoss(SCHEDULE, CPU)(net, batch())
    gradient = torch.autograd.grad(losses["vlb"], [net.eps, net.v], allow_unused=True)
    assert gradient[0] is None or gradient[0].abs().item() == 0
    assert gradient[1].abs().item() > 0


def test_a_network_that_is_shown_the_class_learns_what_noise_hides() -> None:
    """Black or white images with so much noise that only the class tells their brightness."""
    abar, steps = 0.02, 70
    pixels = np.repeat(np.array([0, 255], np.uint8), 4)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    data = TrainingSet.whole(LabelledImages(pixels, np.repeat([0, 1], 4), ()))
    settings = TrainSettings(images=16 * steps, batch=16, lr=3e-3, warmup=0, decay=0, precision="float32")
    state = start(network_and_loss("diffusion")[0], settings, CPU, Path("never"))
    for _ in range(steps):
        train_step(state, HybridLoss(one_step(1 - abar), CPU), make_batch(data, state.step, settings, CPU), settings)
    x, t = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(8)
    with torch.no_grad():
        black, white = (state.model(x, t, torch.full((8,), y))[:, :1] for y in (0, 1))
    assert (black - white).mean().item() > 0.5 * 2 * math.sqrt(abar / (1 - abar))


def test_an_unconditional_network_gets_no_class() -> None:
    def model(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        assert y is None
        return x

    assert HybridLoss(SCHEDULE, CPU, conditional=False)(model, batch()).keys() == {"loss", "mse"}  # type: ignore[arg-type]


@pytest.mark.parametrize("ect", [0.0, 0.1])
def test_classifier_loss_is_cross_entropy_plus_the_entropy_constraint(ect: float) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tensor([2.0, 0.0, 0.0, -1.0]).expand(len(x), 4)

    losses = ClassifierLoss(SCHEDULE, CPU, ect)(Constant(), batch())
    p = torch.tensor([2.0, 0.0, 0.0, -1.0]).softmax(0)
    cross_entropy = -p.log().mean().item()  # the batch's classes are balanced
    constraint = math.log(4) + (p * p.log()).sum().item()
    assert losses["loss"].item() == pytest.approx(cross_entropy + ect * constraint, rel=1e-5)
    assert losses["accuracy"].item() == 0.25


def test_a_clean_classifier_learns_from_images_without_noise() -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return torch.zeros(len(x), 4)

    b = batch()
    ClassifierLoss(SCHEDULE, CPU, clean=True)(model, b)  # type: ignore[arg-type]
    ClassifierLoss(SCHEDULE, CPU)(model, b)  # type: ignore[arg-type]
    (clean, t), (noisy, _) = seen
    assert torch.equal(clean, b.x_0) and not t.any() and not torch.allclose(noisy, b.x_0)
