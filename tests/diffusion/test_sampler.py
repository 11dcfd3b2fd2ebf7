"""The reverse chain against a Gaussian whose posterior is known, and the properties users rely on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pipeline.diffusion.guidance import PredictedRealImage, StepState, guidance
from pipeline.diffusion.sampler import Chain, ImageNoise, reverse_chain, to_uint8
from pipeline.diffusion.schedule import Schedule, make_schedule
from pipeline.errors import ManifestError
from pipeline.models.adm import UNet
from pipeline.models.blocks import NetworkConfig

MEAN, STD = 0.2, 0.05


class GaussianScore:
    """The exact eps of data distributed as N(MEAN, STD^2) in every pixel."""

    def __init__(self, schedule: Schedule) -> None:
        self.abar = schedule.alphas_cumprod.tolist()

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        abar = self.abar[int(t[0])]
        variance = abar * STD**2 + 1 - abar
        return math.sqrt(1 - abar) * (x - math.sqrt(abar) * MEAN) / variance


@pytest.mark.parametrize(("method", "eta"), [("ancestral", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_chain_recovers_a_gaussian(method: str, eta: float) -> None:
    schedule = make_schedule("cosine", 1000)
    chain = Chain(schedule, method, eta)
    g = torch.Generator().manual_seed(0)
    x_T, y = torch.randn(64, 1, 16, 16, generator=g), torch.zeros(64, dtype=torch.int64)
    *_, last = reverse_chain(
        GaussianScore(schedule), None, chain, x_T, y, lambda _: torch.randn(x_T.shape, generator=g)
    )
    assert last.x.mean().item() == pytest.approx(MEAN, abs=0.003)
    assert last.x.std().item() == pytest.approx(STD, rel=0.05)


def test_ddim_follows_the_probability_flow_of_a_gaussian_pixel_by_pixel() -> None:
    """The flow maps x_T to MEAN + (x_T - sqrt(abar) MEAN) STD / sqrt(abar STD^2 + 1 - abar)."""
    schedule = make_schedule("cosine", 1000)
    x_T = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    chain, y = Chain(schedule, "ddim"), torch.zeros(8, dtype=torch.int64)
    *_, last = reverse_chain(GaussianScore(schedule), None, chain, x_T, y, lambda _: torch.zeros_like(x_T))
    abar = schedule.alphas_cumprod[-1].item()
    wanted = MEAN + (x_T - math.sqrt(abar) * MEAN) * STD / math.sqrt(abar * STD**2 + 1 - abar)
    assert (last.x - wanted).abs().max() < 5e-3


def test_ddim_with_predicted_real_image_scales_eps_by_one_plus_gamma() -> None:
    schedule, gamma = make_schedule("linear", 1000, "ddim10"), 0.3
    c = Chain(schedule, "ddim").coefficients[5]
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    eps = 0.5 * x
    pred = ((x - math.sqrt(1 - c.alpha_cumprod) * eps) / math.sqrt(c.alpha_cumprod)).clamp(-1, 1)
    consistent = (x - math.sqrt(c.alpha_cumprod) * pred) / math.sqrt(1 - c.alpha_cumprod)
    state = StepState(5, c.t, c.alpha_cumprod, x, torch.zeros(2, dtype=torch.int64), eps, pred)
    gradient = guidance([PredictedRealImage(gamma=gamma)], state, None)
    assert gradient is not None
    guided = consistent - math.sqrt(1 - c.alpha_cumprod) * gradient
    torch.testing.assert_close(guided, (1 + gamma) * consistent)


def small_unet() -> UNet:
    torch.manual_seed(0)
    config = NetworkConfig(
        image_size=8, in_channels=1, model_channels=32, out_channels=2, num_res_blocks=1,
        attention_resolutions=(2,), channel_mult=(1, 2), num_classes=3, num_head_channels=32,
    )  # fmt: skip
    unet = UNet(config).eval().requires_grad_(False)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return unet


def draw(seeds: list[int], classes: list[int]) -> Tensor:
    noise = ImageNoise(seeds, (1, 8, 8), torch.device("cpu"))
    chain = Chain(make_schedule("cosine", 1000, "8"), terms=(PredictedRealImage(gamma=0.05),))
    *_, last = reverse_chain(small_unet(), None, chain, noise(-1), torch.tensor(classes), noise)
    return last.x


def test_an_image_depends_on_its_seed_alone_whatever_the_batch() -> None:
    """Tolerance 1e-4 in [-1, 1]: other batch sizes take other float32 summation orders."""
    together = draw([11, 22, 33, 44, 55], [0, 1, 2, 0, 1])
    reordered = draw([44, 11], [0, 0])
    alone = draw([33], [2])
    assert (together[[3, 0]] - reordered).abs().max() < 1e-4
    assert (together[2:3] - alone).abs().max() < 1e-4
    assert (together[0] - together[3]).abs().max() > 0.1, "different seeds must give different images"


def test_the_same_batch_gives_the_same_bytes() -> None:
    assert torch.equal(draw([1, 2, 3], [0, 1, 2]), draw([1, 2, 3], [0, 1, 2]))


def test_a_chain_yields_every_step_with_its_original_time() -> None:
    schedule = make_schedule("cosine", 1000, "5")
    x = torch.zeros(1, 1, 8, 8)
    states = list(reverse_chain(small_unet(), None, Chain(schedule), x, torch.tensor([0]), lambda _: x))
    assert [s.t for s in states] == schedule.timesteps.tolist()[::-1]
    assert [s.step for s in states] == [4, 3, 2, 1, 0]


def test_pixels_are_truncated_as_the_reference_does() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize(
    ("method", "eta", "message"),
    [
        ("euler", 0.0, "sampler.method: 'euler' is not one of ancestral, ddim"),
        ("ddim", 1.5, "sampler.eta: 1.5 is not within 0 and 1"),
        ("ancestral", 0.5, "sampler.eta: 0.5 is not 0, for method 'ancestral'"),
    ],
)
def test_impossible_chains_are_refused(method: str, eta: float, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Chain(make_schedule("cosine", 10), method, eta)
