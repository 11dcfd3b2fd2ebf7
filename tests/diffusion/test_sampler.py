"""The reverse chain on Gaussians whose posterior is known, and properties that users rely on."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from gaussian import MEAN, STD, GaussianScore, even_schedule, flow
from torch import Tensor

from rarefy.diffusion.sampler import Chain, ImageNoise, reverse_chain, to_uint8
from rarefy.diffusion.schedule import Schedule, make_schedule
from rarefy.errors import ManifestError
from rarefy.guidance.base import Networks, StepState
from rarefy.guidance.guide import Guide
from rarefy.guidance.terms import ClassifierGuidance, PredictedRealImage
from rarefy.models.adm import UNet
from rarefy.models.config import NetworkConfig

SOLVERS = [(method, eta) for method in ("ddim", "dpm-solver++") for eta in (0.0, 0.5, 1.0)]


@pytest.mark.parametrize(("method", "eta"), [("ancestral", 0.0), *SOLVERS])
def test_chain_recovers_a_gaussian(method: str, eta: float) -> None:
    schedule = make_schedule("cosine", 1000)
    chain = Chain(schedule, method, eta)
    g = torch.Generator().manual_seed(0)
    x_T, y = torch.randn(64, 1, 16, 16, generator=g), torch.zeros(64, dtype=torch.int64)
    *_, last = reverse_chain(
        Networks(GaussianScore(schedule)), chain, x_T, y, lambda _: torch.randn(x_T.shape, generator=g)
    )
    assert last.x.mean().item() == pytest.approx(MEAN, abs=0.003)
    assert last.x.std().item() == pytest.approx(STD, rel=0.05)


def test_ddim_follows_the_probability_flow_of_a_gaussian_pixel_by_pixel() -> None:
    schedule = make_schedule("cosine", 1000)
    x_T = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    chain, y = Chain(schedule, "ddim"), torch.zeros(8, dtype=torch.int64)
    *_, last = reverse_chain(Networks(GaussianScore(schedule)), chain, x_T, y, lambda _: torch.zeros_like(x_T))
    assert (last.x - flow(x_T, schedule.alphas_cumprod[-1].item())).abs().max() < 5e-3


def ratios(errors: list[float]) -> list[float]:
    """The factor by which each doubling of the steps reduces the error."""
    return [coarse / fine for coarse, fine in itertools.pairwise(errors)]


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("dpm-solver++", 2)])
def test_order_of_convergence_to_the_probability_flow(method: str, order: int) -> None:
    """Doubling the steps divides the error by 2 to the power of the order."""
    x_T = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)
    y, errors = torch.zeros(9, dtype=torch.int64), []
    for count in (40, 80, 160):
        s = even_schedule(count)
        *_, last = reverse_chain(Networks(GaussianScore(s)), Chain(s, method), x_T, y, lambda _: torch.zeros_like(x_T))
        errors.append((last.x - flow(x_T, s.alphas_cumprod[-1].item())).abs().max().item())
    assert ratios(errors) == pytest.approx([2**order] * 2, rel=0.2)


def response(schedule: Schedule, method: str, eta: float) -> Tensor:
    """The effect of each unit draw (x_T, then one per step) on the image, (steps + 1,); here the chain is affine."""
    size = len(schedule) + 1
    unit = 1e-3 * torch.eye(size, size + 1, dtype=torch.float64)[..., None, None, None]  # small: nothing is clipped
    y = torch.zeros(size + 1, dtype=torch.int64)
    chain = Chain(schedule, method, eta)
    *_, last = reverse_chain(Networks(GaussianScore(schedule)), chain, unit[0], y, lambda step: unit[step + 1])
    return (last.x[:-1] - last.x[-1]).flatten() * 1e3


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("dpm-solver++", 2)])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_order_of_convergence_of_the_variance_with_noise(method: str, eta: float, order: int) -> None:
    """The draws are independent, so the image's variance is exactly the sum of their squared responses."""
    errors = []
    for count in (80, 160, 320):
        s = even_schedule(count)
        abar = s.alphas_cumprod[-1].item()
        weights = response(s, method, eta)
        weights[0] *= math.sqrt(abar * STD**2 + 1 - abar)  # x_T as the forward process makes it
        errors.append(abs(weights.square().sum().item() - STD**2))
    assert ratios(errors) == pytest.approx([2**order] * 2, rel=0.25)


def test_dpm_solver_is_the_papers_formula() -> None:
    """Lu et al. 2022: x' = sigma'/sigma x + alpha' (1 - e^-h) D, and the SDE form with noise, for one step."""
    schedule = make_schedule("cosine", 1000, "ddim10")
    x_T = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    z, y = torch.randn(x_T.shape, generator=torch.Generator().manual_seed(6), dtype=x_T.dtype), torch.zeros(4).long()
    for eta in (0.0, 1.0):
        chain = Chain(schedule, "dpm-solver++", eta)
        states = list(reverse_chain(Networks(GaussianScore(make_schedule("cosine", 1000))), chain, x_T, y, lambda _: z))
        now, after = states[3:5]  # each with the prediction that led to it
        abar = schedule.alphas_cumprod[[now.step, after.step, after.step - 1]]
        alpha, sigma = abar.sqrt().tolist(), (1 - abar).sqrt().tolist()
        lam = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
        h, r = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
        d = (1 + 1 / (2 * r)) * after.pred_xstart - 1 / (2 * r) * now.pred_xstart
        decay = math.exp(-eta * h)
        expected = sigma[2] / sigma[1] * decay * now.x + alpha[2] * (1 - math.exp(-h) * decay) * d
        expected = expected + sigma[2] * math.sqrt(1 - decay**2) * z
        torch.testing.assert_close(after.x, expected, rtol=1e-9, atol=1e-9)


def test_the_first_and_last_dpm_solver_steps_are_of_first_order() -> None:
    schedule = make_schedule("cosine", 1000, "logsnr8")
    x_T = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y, score = torch.zeros(4, dtype=torch.int64), GaussianScore(make_schedule("cosine", 1000))
    first, second = (
        list(reverse_chain(Networks(score), Chain(schedule, method), x_T, y, torch.zeros_like(x_T).mul))
        for method in ("ddim", "dpm-solver++")
    )
    assert torch.equal(first[0].x, second[0].x) and not torch.equal(first[1].x, second[1].x)
    torch.testing.assert_close(second[-1].x, second[-1].pred_xstart)


class TwoGaussians:
    """Exact eps and classifier for two kinds of images, with all pixels N(MEAN, STD^2) or all N(-MEAN, STD^2)."""

    def __init__(self, schedule: Schedule) -> None:
        self.abar = schedule.alphas_cumprod.tolist()

    def classify(self, x: Tensor, t: Tensor) -> Tensor:
        abar = self.abar[int(t[0])]
        logit = 2 * math.sqrt(abar) * MEAN * x.flatten(1).sum(1) / (abar * STD**2 + 1 - abar)
        return torch.stack([logit, torch.zeros_like(logit)], dim=1)

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        abar = self.abar[int(t[0])]
        share = self.classify(x, t).softmax(1)[:, 0].view(-1, 1, 1, 1)
        mean = math.sqrt(abar) * MEAN * (2 * share - 1)
        return math.sqrt(1 - abar) * (x - mean) / (abar * STD**2 + 1 - abar)


@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("dpm-solver++", 2)])
def test_classifier_guidance_of_scale_one_leads_to_the_class_at_the_solvers_order(method: str, order: int) -> None:
    """The mixture's score plus grad log p(y | x) is the class's own score, whose flow is known."""
    x_T = torch.randn(16, 1, 2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = torch.arange(16) % 2
    target = torch.where(y == 0, MEAN, -MEAN).view(16, 1, 1, 1)
    errors = []
    for count in (40, 80, 160):
        s = even_schedule(count)
        exact, chain = TwoGaussians(s), Chain(s, method, terms=(ClassifierGuidance(),))
        *_, last = reverse_chain(Networks(exact, exact.classify), chain, x_T, y, lambda _: torch.zeros_like(x_T))
        errors.append((last.x - flow(x_T, s.alphas_cumprod[-1].item(), target)).abs().max().item())
    assert errors[-1] < 1e-2
    assert ratios(errors) == pytest.approx([2**order] * 2, rel=0.2)


@pytest.mark.parametrize("method", ["ancestral", "ddim", "dpm-solver++"])
def test_a_chain_makes_the_requested_number_of_classifier_passes(method: str) -> None:
    schedule, called = make_schedule("cosine", 1000, "logsnr10"), []
    exact = TwoGaussians(make_schedule("cosine", 1000))

    def classify(x: Tensor, t: Tensor) -> Tensor:
        called.append(int(t[0]))
        return exact.classify(x, t)

    times = schedule.timesteps.tolist()[::-1]
    terms = (ClassifierGuidance(window=(times[8], times[2])),)
    chain, x = Chain(schedule, method, terms=terms, classifier_every=3), torch.zeros(2, 1, 2, 2)
    assert len(list(reverse_chain(Networks(exact, classify), chain, x, torch.tensor([0, 1]), lambda _: x))) == 10
    assert called == [times[2], times[5], times[8]]


def test_ddim_with_predicted_real_image_scales_eps_by_one_plus_gamma() -> None:
    schedule, gamma = make_schedule("linear", 1000, "ddim10"), 0.3
    c = Chain(schedule, "ddim").coefficients[5]
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    eps = 0.5 * x
    pred = ((x - math.sqrt(1 - c.alpha_cumprod) * eps) / math.sqrt(c.alpha_cumprod)).clamp(-1, 1)
    consistent = (x - math.sqrt(c.alpha_cumprod) * pred) / math.sqrt(1 - c.alpha_cumprod)
    state = StepState(5, c.t, c.alpha_cumprod, x, torch.zeros(2, dtype=torch.int64), eps, pred)
    gradient = Guide([PredictedRealImage(gamma=gamma)], Networks(GaussianScore(make_schedule("linear", 100))))(state)
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


def draw(seeds: list[int], classes: list[int], method: str = "ancestral", eta: float = 0.0) -> Tensor:
    noise = ImageNoise(seeds, (1, 8, 8), torch.device("cpu"))
    chain = Chain(make_schedule("cosine", 1000, "logsnr8"), method, eta, (PredictedRealImage(gamma=0.05),))
    *_, last = reverse_chain(Networks(small_unet()), chain, noise(-1), torch.tensor(classes), noise)
    return last.x


@pytest.mark.parametrize(("method", "eta"), [("ancestral", 0.0), ("dpm-solver++", 0.0), ("dpm-solver++", 1.0)])
def test_an_image_depends_on_its_seed_and_not_on_the_batch(method: str, eta: float) -> None:
    """Tolerance 1e-4 in [-1, 1]: the order of float32 sums depends on the batch size."""
    together = draw([11, 22, 33, 44, 55], [0, 1, 2, 0, 1], method, eta)
    reordered = draw([44, 11], [0, 0], method, eta)
    alone = draw([33], [2], method, eta)
    assert (together[[3, 0]] - reordered).abs().max() < 1e-4
    assert (together[2:3] - alone).abs().max() < 1e-4
    assert (together[0] - together[3]).abs().max() > 0.1, "different seeds must give different images"


def test_the_same_batch_gives_the_same_bytes() -> None:
    assert torch.equal(draw([1, 2, 3], [0, 1, 2]), draw([1, 2, 3], [0, 1, 2]))


def test_a_chain_yields_every_step_with_its_original_time() -> None:
    schedule = make_schedule("cosine", 1000, "5")
    x = torch.zeros(1, 1, 8, 8)
    states = list(reverse_chain(Networks(small_unet()), Chain(schedule), x, torch.tensor([0]), lambda _: x))
    assert [s.t for s in states] == schedule.timesteps.tolist()[::-1]
    assert [s.step for s in states] == [4, 3, 2, 1, 0]


def test_pixels_are_truncated_as_the_reference_does() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    assert to_uint8(values).tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize(
    ("method", "eta", "message"),
    [
        ("euler", 0.0, r"sampler.method: 'euler' is not one of ancestral, ddim, dpm-solver\+\+"),
        ("ddim", 1.5, "sampler.eta: 1.5 is not from 0 to 1"),
        ("ancestral", 0.5, "sampler.eta: 0.5 is not 0, as method 'ancestral' requires"),
    ],
)
def test_impossible_chains_are_refused(method: str, eta: float, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        Chain(make_schedule("cosine", 10), method, eta)


def test_classifier_every_is_at_least_one() -> None:
    with pytest.raises(ManifestError, match=r"sampler\.classifier_every: 0 is not at least 1"):
        Chain(make_schedule("cosine", 10), classifier_every=0)
