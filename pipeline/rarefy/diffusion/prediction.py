"""From what a U-Net predicts to the noise eps, which the sampler and all guidance terms work with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rarefy.diffusion.schedule import schedule_of
from rarefy.errors import ManifestError, bad, one_of
from rarefy.guidance.base import Denoise
from rarefy.models.config_file import PREDICTIONS

if TYPE_CHECKING:
    from rarefy.models.folder import ModelFolder


def denoiser(unet: nn.Module, model: ModelFolder) -> Denoise:
    """A model's U-Net as the chain calls it: it returns eps, and only a conditional one is given the class ids.

    Raises ManifestError for an unknown prediction, and at a call if the network's output has another shape than x.
    """
    to_eps = _converter(model)

    def denoise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        output: Tensor = unet(x, t, None if model.num_classes is None else y)
        if output.shape[1] not in (x.shape[1], 2 * x.shape[1]) or output.shape[2:] != x.shape[2:]:
            shape = tuple(output.shape[1:])
            raise ManifestError(bad("unet output", shape, f"{tuple(x.shape[1:])}, or twice as many channels"))
        return output if to_eps is None else to_eps(output, x, t)

    return denoise


class _Converter:
    """Turns predictions of v or of the clean image into eps; channels of a learned sigma stay as they are.

    v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans & Ho 2022), so eps = sqrt(abar) v + sqrt(1 - abar) x_t. For a
    prediction of x_0, eps = (x_t - sqrt(abar) x_0) / sqrt(1 - abar).
    """

    def __init__(self, prediction: str, alphas_cumprod: Tensor) -> None:
        self.prediction = prediction
        self.root, self.root_noise = alphas_cumprod.sqrt().float(), (1 - alphas_cumprod).sqrt().float()

    def __call__(self, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """output: (B, C or 2C, H, W); t: (B,) original time steps."""
        if self.root.device != x.device:
            self.root, self.root_noise = self.root.to(x.device), self.root_noise.to(x.device)
        predicted, sigma = output[:, : x.shape[1]], output[:, x.shape[1] :]
        root, root_noise = (table[t.long()][:, None, None, None] for table in (self.root, self.root_noise))
        of_v = self.prediction == "v"
        eps = root * predicted + root_noise * x if of_v else (x - root * predicted) / root_noise
        return torch.cat([eps, sigma], dim=1)


def _converter(model: ModelFolder) -> _Converter | None:
    if model.prediction not in PREDICTIONS:
        raise ManifestError(bad("schedule.prediction", model.prediction, one_of(model.prediction, PREDICTIONS)))
    return None if model.prediction == "eps" else _Converter(model.prediction, schedule_of(model).alphas_cumprod)
