"""Predictions of v and of the clean image, converted to eps, compared with their definitions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from rarefy.diffusion.prediction import denoiser
from rarefy.diffusion.schedule import schedule_of
from rarefy.errors import ManifestError
from rarefy.models.config import OtherNetwork
from rarefy.models.folder import ModelFolder

UNET = OtherNetwork("own:network", 4, 3, 3)
MODEL = ModelFolder("tiny", "", UNET, None, "linear", 1.0, 50, beta_range=(0.001, 0.3))
T = torch.tensor([0, 10, 49])


class Knowing(nn.Module):
    """Returns what it was given, and remembers how it was called."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output, self.calls = output, list[tuple[Tensor, Tensor | None]]()

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        self.calls.append((t, y))
        return self.output


def noised() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0, eps, x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, and abar of each image."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn(2, 3, 3, 4, 4, generator=generator).unbind()
    abar = schedule_of(MODEL).alphas_cumprod[T].float()[:, None, None, None]
    return x_0, eps, abar.sqrt() * x_0 + (1 - abar).sqrt() * eps, abar


@pytest.mark.parametrize("prediction", ["eps", "v", "sample"])
@pytest.mark.parametrize("learned_sigma", [False, True])
def test_every_prediction_becomes_eps(prediction: str, learned_sigma: bool) -> None:
    x_0, eps, x_t, abar = noised()
    predicted = {"eps": eps, "v": abar.sqrt() * eps - (1 - abar).sqrt() * x_0, "sample": x_0}[prediction]
    sigma = torch.rand(3, 3, 4, 4)
    output = torch.cat([predicted, sigma], dim=1) if learned_sigma else predicted
    denoise = denoiser(Knowing(output), dataclasses.replace(MODEL, prediction=prediction))
    result = denoise(x_t, T.float(), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(result[:, :3], eps, rtol=0, atol=2e-5)
    assert torch.equal(result[:, 3:], sigma) if learned_sigma else result.shape == eps.shape


@pytest.mark.parametrize("classes", [None, 5])
def test_the_network_is_given_original_time_steps_and_classes_if_it_knows_any(classes: int | None) -> None:
    network = Knowing(torch.zeros(3, 3, 4, 4))
    model = dataclasses.replace(MODEL, unet=dataclasses.replace(UNET, num_classes=classes))
    y = torch.tensor([4, 0, 2])
    denoiser(network, model)(torch.zeros(3, 3, 4, 4), T.float(), y)
    ((t, given),) = network.calls
    assert torch.equal(t, T.float()) and (given is None if classes is None else given is y)


@pytest.mark.parametrize("shape", [(3, 4, 4, 4), (3, 1, 4, 4), (3, 3, 8, 8), (3, 3, 4)])
def test_an_output_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ManifestError, match=r"unet output: \(.*\) is not \(3, 4, 4\), or twice as many channels"):
        denoiser(Knowing(torch.zeros(shape)), MODEL)(torch.zeros(3, 3, 4, 4), T.float(), T)


def test_an_unknown_prediction_is_refused() -> None:
    with pytest.raises(ManifestError, match=r"schedule\.prediction: 'flow' is not one of eps, v, sample"):
        denoiser(Knowing(torch.zeros(1)), dataclasses.replace(MODEL, prediction="flow"))
