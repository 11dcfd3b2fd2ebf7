"""Floating-point operations of a preset's networks, counted from their shapes without computing anything.

Convolutions and matrix products alone, two operations for a multiplication with its addition.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rarefy.diffusion.sampler import denoiser
from rarefy.models.adm import Classifier, UNet
from rarefy.models.folder import ModelFolder

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Flops:
    """Of one image in one guided step."""

    unet: int
    classifier_forward: int
    classifier_backward: int


@functools.cache
def count_flops(preset: ModelFolder) -> Flops:
    """Count one image's operations; backward is the gradient with respect to the image, not to weights."""
    with _counting():
        unet, classifier = _network(UNet(preset.unet)), _network(Classifier(preset.classifier))
        x, t, y = _one_image(preset)
        with FlopCounterMode(display=False) as first, torch.no_grad():
            denoiser(unet)(x, t, y)
        x.requires_grad_()
        with FlopCounterMode(display=False) as second:
            logits: Tensor = classifier(x, t)
        with FlopCounterMode(display=False) as third:
            torch.autograd.grad(logits.sum(), x)
    return Flops(first.get_total_flops(), second.get_total_flops(), third.get_total_flops())


def count_training_flops(preset: ModelFolder) -> int:
    """One image's operations in a training step of the U-Net: forward, and the gradient of every parameter."""
    with _counting():
        unet = _network(UNet(preset.unet)).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            denoiser(unet)(*_one_image(preset)).sum().backward()
    total: int = counter.get_total_flops()
    return total


@contextmanager
def _counting() -> Iterator[None]:
    """Nothing is computed; attention is products, since the counter does not know the CPU's fused one."""
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        yield


def _network(network: M) -> M:
    """In float64, where normalisation makes no matrix products; no parameter takes a gradient."""
    network.eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.data = parameter.data.double()
    return network


def _one_image(preset: ModelFolder) -> tuple[Tensor, Tensor, Tensor]:
    """x, t and y of a batch of one."""
    size = preset.image_size
    x = torch.zeros(1, preset.channels, size, size, dtype=torch.float64)
    return x, torch.zeros(1), torch.zeros(1, dtype=torch.int64)
