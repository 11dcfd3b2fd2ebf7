"""Images drawn from a network in training: 20 deterministic steps without guidance, the same noise every time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rarefy.diffusion.prediction import denoiser
from rarefy.diffusion.sampler import ImageNoise, reverse_chain, to_uint8
from rarefy.diffusion.settings import SamplerSettings
from rarefy.execution import prepare
from rarefy.guidance.base import Networks
from rarefy.models.adm import ADM
from rarefy.models.folder import ModelFolder
from rarefy.models.networks import build_classifier, build_unet
from rarefy.training.progress import tracked
from rarefy.training.recipe import Recipe

BATCH_PIXELS = 4 * 256**2  # per batch: ADM-256 takes about 0.7 GB per image
MOST = 50  # images in a batch, so that a time limit is kept
START = 0.95  # of the chain: at its noisiest steps a network is far off after short training (see SamplerSettings)


def sampler_of(model: ModelFolder) -> SamplerSettings:
    """How a model's images are drawn in training."""
    return SamplerSettings("dpm-solver++", "logsnr20", start=int(START * model.diffusion_steps))


def build_network(recipe: Recipe) -> ADM:
    """The recipe's network with random weights, on the CPU."""
    model = recipe.model
    return build_unet(model.unet) if recipe.part == "diffusion" else build_classifier(model.classifier)


def averaged_network(recipe: Recipe, weights: dict[str, Tensor], device: torch.device) -> ADM:
    """A network with the moving average's weights, ready to be used."""
    network = prepare(build_network(recipe), device).eval().requires_grad_(False)
    network.load_state_dict(weights)
    return network


@torch.no_grad()
def draw_images(network: nn.Module, model: ModelFolder, y: Tensor) -> Iterator[Tensor]:
    """Images of the classes ``y``, (N,), in batches (B, C, H, W) of uint8 on the CPU."""
    device, size = next(network.parameters()).device, min(MOST, max(1, BATCH_PIXELS // model.image_size**2))
    networks, chain = Networks(denoiser(network, model)), sampler_of(model).chain(model)
    shape = (model.channels, model.image_size, model.image_size)
    parts = [slice(first, min(first + size, len(y))) for first in range(0, len(y), size)]
    for part in tracked("drawing samples", parts):
        noise = ImageNoise(range(part.start, part.stop), shape, device)
        *_, last = reverse_chain(networks, chain, noise(-1), y[part].to(device), noise)
        yield to_uint8(last.x).cpu()


def save_grid(network: nn.Module, model: ModelFolder, path: Path, columns: int = 10, rows: int = 4) -> None:
    """Draw ``rows`` images of the first ``columns`` classes."""
    y = torch.arange(columns * rows) % columns % model.classifier_classes
    images = torch.cat(list(draw_images(network, model, y)))
    pixels = images.unflatten(0, (rows, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1).numpy())).save(path)
