"""Held-out images: no training step sees them, and losses and accuracies are measured on them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rarefy.diffusion.sampler import ImageNoise
from rarefy.diffusion.schedule import Schedule
from rarefy.errors import DataError
from rarefy.images import LabelledImages, pixel_digest
from rarefy.training.data import TrainingSet
from rarefy.training.losses import HybridLoss
from rarefy.training.progress import tracked

LOSS_IMAGES = 1000
BATCH_PIXELS = 500 * 32**2  # per batch of a pass without gradients
HASHED_ROWS = 4096  # between two calls of step

Step = Callable[[int, int], None]


def without_held_out(data: LabelledImages, held_out: LabelledImages | None, step: Step) -> TrainingSet:
    """The images whose pixels equal those of no held-out image. Raises DataError if none is left.

    So the split holds whatever the files are called, and copies of held-out images are left out too. step: called with
    the number of images compared so far and their total.
    """
    if held_out is None:
        return TrainingSet.whole(data)
    hidden = {pixel_digest(image) for image in held_out.images}
    seen = np.zeros(len(data), bool)
    for row, image in enumerate(data.images):
        seen[row] = pixel_digest(image) in hidden
        if (row + 1) % HASHED_ROWS == 0 or row + 1 == len(data):
            step(row + 1, len(data))
    if seen.all():
        raise DataError(f"data: all {len(data):,} images are held out, so none is left to train on")
    return TrainingSet(data, np.flatnonzero(~seen), int(seen.sum()))


@torch.no_grad()
def held_out_losses(network: nn.Module, loss: HybridLoss, data: LabelledImages) -> dict[str, float]:
    """A diffusion network's mean losses on at most 1,000 images, each with a noise and a step of its own.

    Images, noises and steps are always the same, so losses of one run can be compared. The steps are spread evenly
    over the chain.
    """
    device = next(network.parameters()).device
    rows = np.random.default_rng(0).permutation(len(data))[:LOSS_IMAGES]
    steps = (torch.arange(len(rows)) + 0.5) * len(loss.noising.timesteps) / len(rows)
    totals: dict[str, float] = {}
    for part in tracked("measuring the held-out loss", _parts(len(rows), data)):
        x_0 = scaled(data.images[rows[part]]).to(device)
        y = torch.from_numpy(data.labels[rows[part]]).to(device)
        noise = ImageNoise(range(part.start, part.stop), (x_0.shape[1], *x_0.shape[2:]), device)(0)
        losses = loss.at(network, x_0, y, steps[part].long().to(device), noise)
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(x_0) / len(rows)
    return {f"held_out_{name}": value for name, value in totals.items()}


@torch.no_grad()
def hits_at(network: nn.Module, data: LabelledImages, schedule: Schedule, step: int) -> NDArray[np.bool_]:
    """Which images a classifier labels rightly when they are noised to one step of the chain (step 0: no noise)."""
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(step)
    abar = float(schedule.alphas_cumprod[step])
    hits = np.empty(len(data), bool)
    for part in tracked(f"measuring accuracy at step {step}", _parts(len(data), data)):
        x_0 = scaled(data.images[part])
        x_t = x_0 if step == 0 else abar**0.5 * x_0 + (1 - abar) ** 0.5 * torch.randn(x_0.shape, generator=generator)
        t = torch.full((len(x_t),), float(schedule.timesteps[step]), device=device)
        predicted = network(x_t.to(device), t).argmax(-1).cpu().numpy()
        hits[part] = predicted == data.labels[part]
    return hits


def accuracy_at(network: nn.Module, data: LabelledImages, schedule: Schedule, step: int) -> float:
    """Top-1 accuracy on images noised to one step of the chain, from 0 to 1."""
    return float(hits_at(network, data, schedule, step).mean())


def accuracies(network: nn.Module, data: LabelledImages, schedule: Schedule, clean: bool) -> dict[str, float]:
    """A classifier's accuracy at 0, 0.3, 0.5 and 0.7 of the chain. clean: at 0 alone, for a judge."""
    steps = [len(schedule) * tenths // 10 for tenths in ((0,) if clean else (0, 3, 5, 7))]
    return {f"t={step}": round(accuracy_at(network, data, schedule, step), 4) for step in steps}


def class_accuracies(network: nn.Module, data: LabelledImages, schedule: Schedule) -> dict[str, float]:
    """A classifier's accuracy without noise on each class that has held-out images, by the class's name."""
    hits = hits_at(network, data, schedule, 0)
    present = np.unique(data.labels)
    return {data.class_names[k]: round(float(hits[data.labels == k].mean()), 4) for k in present}


def scaled(images: NDArray[np.uint8]) -> torch.Tensor:
    """Pixels as the networks see them: float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).float() / 127.5 - 1


def _parts(count: int, data: LabelledImages) -> list[slice]:
    size = max(1, BATCH_PIXELS // data.images.shape[-1] ** 2)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
