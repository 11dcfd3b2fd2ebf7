"""How fast this machine trains a network: a few steps on random images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rarefy.diffusion.schedule import make_schedule
from rarefy.errors import DeviceError
from rarefy.images import LabelledImages
from rarefy.models.adm import ADM
from rarefy.models.config import NetworkConfig
from rarefy.models.networks import build_classifier, build_unet
from rarefy.training.data import TrainingSet, make_batch
from rarefy.training.losses import ClassifierLoss, HybridLoss
from rarefy.training.settings import TrainSettings
from rarefy.training.state import start
from rarefy.training.step import LossFunction, train_step

ENOUGH_S = 5.0  # steps are timed for about so long
MOST_STEPS = 5


@dataclass(frozen=True)
class Speed:
    """images_per_s: of training at this batch; accumulate: into how many parts a step is split to fit in memory."""

    images_per_s: float
    accumulate: int = 1


def time_training(network: NetworkConfig, batch: int, device: torch.device) -> Speed:
    """Time training steps of a U-Net (num_classes given) or a classifier. Halves the part of a batch until it fits.

    Raises DeviceError if the GPU's memory is too small for one image.
    """
    part = batch
    while part:
        try:
            return Speed(_images_per_s(network, part, device), batch // part)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            part //= 2
    raise DeviceError(f"size: {network.image_size} px is too large for the memory of {device}; give a smaller --size")


def _images_per_s(network: NetworkConfig, batch: int, device: torch.device) -> float:
    schedule = make_schedule("cosine", 1000)
    model: ADM
    loss: LossFunction
    if network.num_classes is not None:
        model, loss = build_unet(network), HybridLoss(schedule, device)
    else:
        model, loss = build_classifier(network), ClassifierLoss(schedule, device)
    settings, data = TrainSettings(images=10**9, batch=batch), TrainingSet.whole(_noise(network, batch))
    state = start(model, settings, device, Path("no-checkpoint"))

    def step() -> None:
        train_step(state, loss, make_batch(data, state.step, settings, device), settings)["loss"].item()  # waits

    step()  # warm-up: kernels are chosen, memory is allocated
    began, steps = time.perf_counter(), 0
    while steps < MOST_STEPS and time.perf_counter() - began < ENOUGH_S:
        step()
        steps += 1
    return steps * batch / (time.perf_counter() - began)


def _noise(network: NetworkConfig, count: int) -> LabelledImages:
    rng, side = np.random.default_rng(0), network.image_size
    pixels = rng.integers(0, 256, (count, network.in_channels, side, side), np.uint8)
    classes = network.num_classes or network.out_channels
    return LabelledImages(pixels, np.arange(count) % classes, ())
