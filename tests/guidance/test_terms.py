"""Every term with every method on tiny random networks, and some terms compared with closed forms."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from gaussian import GaussianScore, even_schedule, flow
from torch import Tensor

from rarefy.diffusion.prediction import denoiser
from rarefy.diffusion.sampler import Chain, ImageNoise, image_noise, networks_of, reverse_chain, sample
from rarefy.diffusion.schedule import make_schedule
from rarefy.errors import ManifestError
from rarefy.guidance.base import Networks, StepState, Term
from rarefy.guidance.guide import Guide
from rarefy.guidance.terms import (
    BoostAndSkip,
    ClassifierGuidance,
    EntropyAscent,
    LowConfidence,
    PredictedRealImage,
    SelfGuided,
)
from rarefy.guidance.terms.low_confidence import quantile_function
from rarefy.models.adm import Classifier, UNet
from rarefy.models.config import NetworkConfig
from rarefy.models.folder import ModelFolder
from rarefy.models.load import Models

METHODS = [("ancestral", 0.0), ("ddim", 0.0), ("dpm-solver++", 1.0)]
TERMS: list[Term] = [
    ClassifierGuidance(scale=3.0, entropy_scaling=True),
    LowConfidence(scale=5.0, tau=0.9),
    LowConfidence(scale=5.0, tau_quantiles=(0.0, 0.1, 1.0)),
    PredictedRealImage(gamma=0.1),
    EntropyAscent(scale=5.0),
    SelfGuided(scale=1.0, every=2),
    BoostAndSkip(gamma=1.5, start=900),
]
RANKS = torch.tensor([0.0, 0.5, 0.25])


@cache
def tiny(conditional: bool) -> Models:
    """8-pixel networks with random weights, zeroed layers included."""
    torch.manual_seed(0)
    unet = NetworkConfig(
        image_size=8, in_channels=1, model_channels=32, out_channels=2, num_res_blocks=1, attention_resolutions=(2,),
        channel_mult=(1, 2), num_classes=3 if conditional else None, num_head_channels=32,
    )  # fmt: skip
    preset = ModelFolder("tiny", "", unet, replace(unet, num_classes=None, out_channels=3), "cosine", 1.0)
    networks = UNet(preset.unet), Classifier(preset.classifier)
    for network in networks:
        for parameter in network.eval().requires_grad_(False).parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return Models(preset, *networks, "", "")


def chain_of(term: Term | None, method: str = "ancestral", eta: float = 0.0, steps: int = 6) -> Chain:
    return Chain(make_schedule("cosine", 1000, f"logsnr{steps}"), method, eta, () if term is None else (term,))


def draw(chain: Chain, order: list[int], conditional: bool = True) -> Tensor:
    """Images of the seeds 11, 22 and 33 in the given order, each with its own class and rank."""
    seeds = [(11, 22, 33)[k] for k in order]
    *_, last = sample(tiny(conditional), torch.tensor(order), seeds, chain, RANKS[order])
    return last.x


@pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "unconditional"])
@pytest.mark.parametrize(("method", "eta"), METHODS)
def test_every_term_moves_the_image_with_every_method(method: str, eta: float, conditional: bool) -> None:
    plain = draw(chain_of(None, method, eta, 3), [0, 1, 2], conditional)
    for term in TERMS:
        guided = draw(chain_of(term, method, eta, 3), [0, 1, 2], conditional)
        assert guided.isfinite().all(), term
        assert (guided - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-4, term


@pytest.mark.parametrize("term", [TERMS[2], *TERMS[4:]], ids=lambda term: term.name)
def test_an_image_is_the_same_in_another_order_and_alone(term: Term) -> None:
    """Tolerance 1e-4 in [-1, 1]: the order of float32 sums depends on the batch size."""
    together = draw(chain_of(term), [0, 1, 2])
    assert (draw(chain_of(term), [2, 0, 1]) - together[[2, 0, 1]]).abs().max() < 1e-4
    assert (draw(chain_of(term), [1]) - together[1:2]).abs().max() < 1e-4
    assert torch.equal(draw(chain_of(term), [0, 1, 2]), together)


def test_a_chain_without_network_terms_draws_none_of_their_noise() -> None:
    models, y = tiny(True), torch.tensor([0, 1])
    noise = ImageNoise([11, 22], (1, 8, 8), torch.device("cpu"))
    bare = Networks(denoiser(models.unet, models.preset), models.classifier)
    *_, expected = reverse_chain(bare, chain_of(TERMS[0]), noise(-1), y, noise)
    *_, actual = sample(models, y, [11, 22], chain_of(TERMS[0]))
    assert torch.equal(actual.x, expected.x)
    first, second = (networks_of(models, [11, 22]).fresh_noise for _ in range(2))
    assert first is not None and second is not None
    draws = torch.stack([first(), first(), second()])
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
    again = ImageNoise([11, 22], (1, 8, 8), torch.device("cpu"))
    assert (draws[0] - again(-1)).abs().min() > 0, "terms must have their own stream"


class Smooth:
    """Nonlinear float64 stand-ins for the networks that self-guidance calls. They record the calls' time steps."""

    abar = torch.linspace(0.99, 0.05, 10, dtype=torch.float64)

    def __init__(self) -> None:
        g = torch.Generator().manual_seed(4)
        self.weight = torch.randn(9, 9, generator=g, dtype=torch.float64) / 3
        self.noise = torch.randn(2, 1, 3, 3, generator=g, dtype=torch.float64)
        self.times: list[int] = []

    def denoise(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        self.times.append(int(t[0]))
        return torch.tanh(x.flatten(1) @ self.weight + 0.1 * t[:, None] + y[:, None]).view_as(x)

    def features(self, x: Tensor) -> Tensor:
        return torch.sin(x.flatten(1) @ self.weight.T[:, :4])

    def networks(self) -> Networks:
        return Networks(self.denoise, features=self.features, fresh_noise=lambda: self.noise, alphas_cumprod=self.abar)

    def predict(self, x: Tensor, t: int, y: Tensor) -> Tensor:
        eps = self.denoise(x, torch.full((len(x),), float(t), dtype=x.dtype), y)
        return (x - (1 - self.abar[t]).sqrt() * eps) / self.abar[t].sqrt()

    def distance(self, x_t: Tensor, t: int, y: Tensor, target: Tensor) -> Tensor:
        return (self.features(self.predict(x_t, t, y)) - target).square().sum(1)


def smooth_state(step: int = 4) -> StepState:
    x = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return StepState(step, 6, float(Smooth.abar[6]), x, torch.tensor([0, 1]), x, x)


def test_self_guided_is_the_normalised_gradient_of_the_distance_to_the_recovered_image() -> None:
    """Compared with central differences; the image recovered from 0.8 T is kept fixed."""
    exact, s = Smooth(), smooth_state()
    pred = exact.predict(s.x_t, s.t, s.y)
    noisy = exact.abar[8].sqrt() * pred + (1 - exact.abar[8]).sqrt() * exact.noise
    target = exact.features(exact.predict(noisy, 8, s.y))
    expected = torch.zeros_like(s.x_t)
    for i in range(9):
        h = torch.zeros(9, dtype=torch.float64)
        h[i] = 1e-6
        up, down = (exact.distance(s.x_t + sign * h.view(1, 3, 3), s.t, s.y, target) for sign in (1, -1))
        expected.view(2, 9)[:, i] = (up - down) / 2e-6
    expected = 0.7 * expected / expected.abs().amax(dim=(1, 2, 3), keepdim=True)
    actual = SelfGuided(scale=0.7).gradient(s, exact.networks())
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


def test_self_guided_acts_at_every_nth_step_in_its_window_with_two_passes_each() -> None:
    exact = Smooth()
    assert SelfGuided(every=1).due(step=3, t=5)
    guide = Guide([SelfGuided(every=3, window=(2, 9))], exact.networks())
    acted = [guide(replace(smooth_state(step), t=step)) is not None for step in range(9, -1, -1)]
    assert acted == [step in (9, 6, 3) for step in range(9, -1, -1)]
    assert exact.times == [9, 8, 6, 8, 3, 8]


def test_self_guided_is_zero_where_there_is_no_gradient() -> None:
    exact = Smooth()
    networks = replace(exact.networks(), features=lambda x: 0 * x.flatten(1))
    assert not SelfGuided().gradient(smooth_state(), networks).any()


def test_features_are_the_mean_of_the_encoders_output_at_t_zero() -> None:
    classifier, x = tiny(True).classifier, torch.rand(3, 1, 8, 8) * 2 - 1
    actual = classifier.features(x)
    seen: list[Tensor] = []
    handle = classifier.middle_block[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
    classifier(x, torch.zeros(3))
    handle.remove()
    assert actual.shape == (3, 64)
    torch.testing.assert_close(actual, seen[0].mean(dim=(2, 3)))


@pytest.mark.parametrize(("method", "tolerance"), [("ddim", 5e-3), ("dpm-solver++", 2e-4)])
def test_boost_and_skip_follows_the_flow_of_a_gaussian_from_its_first_step(method: str, tolerance: float) -> None:
    """The flow starts at the first kept step, from gamma x_T. No other step or scale gives this image."""
    schedule, gamma, start = even_schedule(400), 2.5, 300
    exact = GaussianScore(schedule)
    x_T = torch.linspace(-1, 1, 9, dtype=torch.float64).view(9, 1, 1, 1)
    chain = Chain(schedule, method, terms=(BoostAndSkip(gamma=gamma, start=start),))
    *_, last = reverse_chain(Networks(exact), chain, x_T, torch.zeros(9).long(), lambda _: torch.zeros_like(x_T))
    expected = flow(gamma * x_T, exact.abar[start])
    assert exact.times == list(range(start, -1, -1)) and len(chain.schedule) == start + 1
    assert (last.x - expected).abs().max() < tolerance


def test_skipping_leaves_the_remaining_steps_unchanged() -> None:
    whole = make_schedule("cosine", 1000, "250")
    chain = Chain(whole, terms=(BoostAndSkip(),))
    assert len(chain.schedule) == 247, "the published 3 of 250 steps"
    assert torch.equal(chain.schedule.alphas_cumprod, whole.alphas_cumprod[:247])
    assert chain.coefficients[-1].multistep_weight == 0
    again = replace(chain, method="ddim")
    assert len(again.schedule) == 247
    with pytest.raises(ManifestError, match=r"start: -1 is not at least 0"):
        whole.up_to(-1)


def test_quantiles_are_linear_between_evenly_spaced_ranks() -> None:
    values, ranks = [0.1, 0.2, 0.8, 0.9], np.linspace(0, 1, 23)
    actual = quantile_function(torch.tensor(values, dtype=torch.float64), torch.from_numpy(ranks))
    np.testing.assert_allclose(actual.numpy(), np.interp(ranks * 3, range(4), values), atol=1e-12)


def test_each_image_of_a_stratified_term_has_its_own_tau() -> None:
    torch.manual_seed(3)
    weight, s = torch.randn(9, 3, dtype=torch.float64), smooth_state()
    networks = Networks(Smooth().denoise, lambda x, t: x.flatten(1) @ weight)

    def gradient(term: Term, ranks: list[float] | None) -> Tensor:
        actual = Guide([term], networks)(replace(s, ranks=None if ranks is None else torch.tensor(ranks)))
        assert actual is not None
        return actual

    spread = LowConfidence(scale=2.0, tau_quantiles=(0.2, 0.4, 1.0))
    actual = gradient(spread, [0.25, 0.75])
    for place, tau in enumerate((0.3, 0.7)):
        expected = gradient(LowConfidence(scale=2.0, tau=tau), None)
        torch.testing.assert_close(actual[place], expected[place], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(gradient(spread, None), gradient(LowConfidence(scale=2.0, tau=0.4), None))


def test_terms_draw_noise_of_their_own_for_each_image() -> None:
    """Apart from the sampler's noise, and the same for an image whatever its neighbours are."""
    models = tiny(True)

    def draws(seeds: list[int]) -> Tensor:
        fresh_noise = networks_of(models, seeds).fresh_noise
        assert fresh_noise is not None
        return fresh_noise()

    both = draws([1, 2])
    assert not torch.equal(both[0], both[1])
    assert torch.equal(both[1:], draws([2]))
    assert not torch.equal(both, image_noise(models, [1, 2])(-1))
