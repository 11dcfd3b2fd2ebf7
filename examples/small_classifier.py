"""What the training examples share: their data, a small network, a step, and its accuracy."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rarefy import consume


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", help="a finished run, such as out/demo or s3://bucket/rare")
    parser.add_argument(
        "real", help="labelled real images in any form that rarefy reads; with a train and a test split"
    )
    parser.add_argument("--held-out", metavar="DATA", help="real images to test on (default: the test split of REAL)")
    parser.add_argument("--where", help='which generated images, such as "confidence < 0.6"')
    parser.add_argument("--ratio", type=float, help="fraction of generated images (default: each once an epoch)")
    parser.add_argument("--epochs", type=int, default=3, help="default 3")
    parser.add_argument("--batch-size", type=int, default=64, help="of each process (default 64)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (default 2)")


def open_data(options: argparse.Namespace) -> tuple[consume.MixedImages, consume.RealImages]:
    """Real and generated images to train on, and real ones to test on."""
    rare = consume.RareImages(options.out, options.where)
    if options.held_out:
        held_out = consume.RealImages(options.held_out, rare)
    else:
        held_out = consume.RealImages(options.real, rare, split="test")
    return consume.mix(options.real, rare, ratio=options.ratio), held_out


def make_network(data: consume.MixedImages) -> nn.Module:
    """A small convolutional network for images of any size."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(len(data[0][0]), 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, len(data.class_names)),
    )


def make_optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=3e-3)


def train_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> float:
    """One step; returns the loss before it."""
    loss = F.cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def train_epoch(network: nn.Module, optimizer: torch.optim.Optimizer, loader: consume.Loader) -> int:
    """One epoch of each process's part; returns how many images all processes used together."""
    used = torch.zeros((), dtype=torch.int64)
    for images, labels in loader:
        train_step(network, optimizer, images, labels)
        used += len(labels)
    dist.all_reduce(used)
    return int(used)


@torch.no_grad()
def accuracy(network: nn.Module, data: consume.RealImages) -> float:
    """Fraction of the images whose class the network names."""
    batches: Iterable[tuple[Tensor, Tensor]] = DataLoader(data, batch_size=256)
    return sum(int((network(images).argmax(1) == labels).sum()) for images, labels in batches) / len(data)
