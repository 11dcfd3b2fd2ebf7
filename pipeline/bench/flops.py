"""Floating-point operations of a preset's networks, counted from their shapes without computing anything."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pipeline.diffusion.sampler import denoiser
from pipeline.models.adm import Classifier, UNet
from pipeline.models.catalog import Preset


@dataclass(frozen=True)
class Flops:
    """Of one image in one step, two for a multiplication with its addition: convolutions and matrix products alone."""

    unet: int
    classifier_forward: int
    classifier_backward: int


@functools.cache
def count_flops(preset: Preset) -> Flops:
    """Count one image's operations; backward is the gradient with respect to the image, not to weights."""
    # In float64 normalisation makes no matrix products; the counter does not know the CPU's fused attention.
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH):
        unet, classifier = UNet(preset.unet), Classifier(preset.classifier)
        for network in (unet, classifier):
            network.eval().requires_grad_(False)
            for parameter in network.parameters():
                parameter.data = parameter.data.double()
        size = preset.image_size
        x = torch.zeros(1, preset.channels, size, size, dtype=torch.float64)
        t, y = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
        with FlopCounterMode(display=False) as first, torch.no_grad():
            denoiser(unet)(x, t, y)
        x.requires_grad_()
        with FlopCounterMode(display=False) as second:
            logits: Tensor = classifier(x, t)
        with FlopCounterMode(display=False) as third:
            torch.autograd.grad(logits.sum(), x)
    return Flops(first.get_total_flops(), second.get_total_flops(), third.get_total_flops())
