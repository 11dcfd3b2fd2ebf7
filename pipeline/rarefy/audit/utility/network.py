"""A small residual network on pixels (He et al. 2016), trained from scratch for a fixed number of steps.

It is no state of the art: it has to show a difference between training sets within minutes on a CPU. Every training
takes as many steps, whatever the number of images, so that a larger set is not also trained for longer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rarefy.device import find_device

NETWORK_SEEDS = 3
WIDTHS = (16, 32, 64)
SIDE = 32  # larger images are shrunk to this side
STEPS = 400
BATCH = 64
TEST_BATCH = 500
PEAK_RATE = 4e-3
WEIGHT_DECAY = 0.02

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; halves the side if the width grows."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        stride = 1 if inputs == width else 2
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = nn.Identity() if inputs == width else nn.Conv2d(inputs, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        out: Tensor = self.shortcut(active) + self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out


class SmallResNet(nn.Module):
    """images (B, channels, H, W) -> logits (B, classes); 78,000 parameters."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, WIDTHS[0], 3, 2, 1, bias=False)
        self.blocks = nn.Sequential(*(Block(a, b) for a, b in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)))
        self.norm = nn.BatchNorm2d(WIDTHS[-1])
        self.head = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))
        return logits


def train_network(images: Images, labels: Labels, classes: int, seed: int, device: str) -> Callable[[Images], Labels]:
    """Train on images (N, C, H, W) with labels (N,); returns a function from images to predicted classes.

    seed: of the initial weights and of the order of the images; equal seeds give equal networks on one
    device. Raises DeviceError.
    """
    place = find_device(device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallResNet(images.shape[1], classes).to(place)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(labels), (min(BATCH, len(labels)),), generator=generator).numpy()
        inputs = _pixels(images[rows]).to(place, memory_format=torch.channels_last)
        loss = F.cross_entropy(network(inputs), torch.from_numpy(labels[rows]).to(place))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return _predictor(network.eval(), place)


def _predictor(network: nn.Module, place: torch.device) -> Callable[[Images], Labels]:
    @torch.inference_mode()
    def predict(images: Images) -> Labels:
        starts = range(0, len(images), TEST_BATCH)
        parts = [network(_pixels(images[at : at + TEST_BATCH]).to(place)).argmax(dim=1).cpu() for at in starts]
        return np.asarray(torch.cat(parts).numpy())

    return predict


def _pixels(images: Images) -> Tensor:
    """uint8 (B, C, H, W) -> float (B, C, H, W), around 0, with sides of 32 px at most."""
    pixels = torch.from_numpy(images.astype(np.float32)).sub_(127.5).div_(64)
    return F.interpolate(pixels, size=(SIDE, SIDE), mode="area") if images.shape[-1] > SIDE else pixels
