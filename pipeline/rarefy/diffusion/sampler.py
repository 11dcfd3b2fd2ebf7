"""The reverse chain as a generator: ancestral, DDIM and DPM-Solver++ steps, with any sum of guidance terms.

Names and rounding follow openai/guided-diffusion; the formulas are in docs/METHODS.md.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rarefy.diffusion.finite import check_finite, image_sums
from rarefy.diffusion.prediction import denoiser
from rarefy.diffusion.schedule import Schedule, schedule_of
from rarefy.errors import ManifestError, bad, one_of
from rarefy.guidance.base import KINDS, Networks, StartTerm, StepState, Term, times
from rarefy.guidance.guide import Guide

if TYPE_CHECKING:
    from rarefy.models.load import Models

METHODS = ("ancestral", "ddim", "dpm-solver++")

NoiseSource = Callable[[int], Tensor]
"""Number of the reverse step (0 is the noisiest) -> z of x_t's shape."""


@dataclass(frozen=True, eq=False)
class Chain:
    """What a reverse chain does at each step.

    schedule: its steps, without those that a start term skips; method: ancestral, ddim or dpm-solver++; eta: amount of
    fresh noise for the last two, from 0 (deterministic) to 1; terms: guidance terms, whose gradients are summed;
    classifier_every: number of steps that share one classifier pass (see Guide).
    """

    schedule: Schedule
    method: str = "ancestral"
    eta: float = 0.0
    terms: Sequence[Term] = ()
    classifier_every: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ManifestError(bad("sampler.method", self.method, one_of(self.method, METHODS)))
        if not 0 <= self.eta <= 1:
            raise ManifestError(bad("sampler.eta", self.eta, "from 0 to 1"))
        if self.eta and self.method == "ancestral":
            raise ManifestError(bad("sampler.eta", self.eta, "0, as method 'ancestral' requires"))
        if self.classifier_every < 1:
            raise ManifestError(bad("sampler.classifier_every", self.classifier_every, "at least 1"))
        for term in self.terms:
            if not isinstance(term, KINDS):
                raise ManifestError(bad("guidance", term.name, "a term whose code was imported, so it cannot guide"))
        noisiest = min((term.noisiest() for term in self.terms if isinstance(term, StartTerm)), default=math.inf)
        object.__setattr__(self, "schedule", self.schedule.up_to(noisiest))

    @cached_property
    def coefficients(self) -> list[Coefficients]:
        """The float64 numbers of each step of the respaced chain."""
        s = self.schedule
        columns = (
            s.timesteps,
            s.alphas_cumprod,
            s.alphas_cumprod_prev,
            s.betas.log(),
            s.posterior_log_variance,
            s.posterior_mean_coef_xstart,
            s.posterior_mean_coef_xt,
            s.multistep_weight,
        )
        return [Coefficients(int(row[0]), *row[1:]) for row in zip(*(c.tolist() for c in columns), strict=True)]


@dataclass(frozen=True)
class Coefficients:
    """The numbers of one step. t: original time step; alpha_cumprod_prev: abar of the next, less noisy step."""

    t: int
    alpha_cumprod: float
    alpha_cumprod_prev: float
    log_beta: float
    posterior_log_variance: float
    mean_xstart: float
    mean_xt: float
    multistep_weight: float


@dataclass(frozen=True, eq=False)
class Sample:
    """State after a reverse step. x: the less noisy image; pred_xstart: this step's prediction of the clean image.

    sums: of the network's output and of x, (B,) each, on the device. A sum is finite only if all its values are.
    """

    step: int
    t: int
    x: Tensor
    pred_xstart: Tensor
    sums: tuple[Tensor, Tensor]


class ImageNoise:
    """Standard normal noise. Each image has its own CPU generator: the same noise on any device, in any batch."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def __call__(self, step: int) -> Tensor:
        """The next draw, (B, C, H, W) float32. Call it once for x_T, then once per step, in order."""
        noise = torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
        if self.device.type == "cuda":
            return noise.pin_memory().to(self.device, non_blocking=True)
        return noise.to(self.device)


@torch.no_grad()
def reverse_chain(
    networks: Networks, chain: Chain, x_T: Tensor, y: Tensor, noise: NoiseSource, ranks: Tensor | None = None
) -> Iterator[Sample]:
    """Run the chain from its noisiest step; yields the state after each step.

    x_T: (B, C, H, W) float32, standard normal; y: (B,) class ids, the target of the guidance; ranks: (B,) (see
    StepState). The last state's ``x`` is the image, roughly in [-1, 1]. ``noise`` is called at every step, even if
    the step adds no noise, as in the reference.
    """
    x = x_T
    for term in chain.terms:
        x = term.begin(x) if isinstance(term, StartTerm) else x
    previous = x  # the previous step's pred_xstart; the first step has none, and its multistep weight is zero
    guide = Guide(chain.terms, networks, chain.classifier_every)
    count = len(chain.schedule)
    for number in range(count):
        step = count - 1 - number
        c = chain.coefficients[step]
        output = networks.denoise(x, times(x, c.t), y)
        eps, log_variance = _split(output, x.shape[1], c)
        pred_xstart = ((x - math.sqrt(1 - c.alpha_cumprod) * eps) / math.sqrt(c.alpha_cumprod)).clamp(-1, 1)
        state = StepState(step, c.t, c.alpha_cumprod, x, y, eps, pred_xstart, ranks)
        gradient = guide(state)
        z = noise(number)
        if chain.method == "ancestral":
            x = _ancestral_step(state, c, log_variance, gradient, z)
        else:
            pred_xstart, _ = prediction = _guided(state, gradient)
            if chain.method == "dpm-solver++" and c.multistep_weight:
                prediction = _extrapolated(state, c, pred_xstart, previous)
            x = _ddim_step(state, c, chain.eta, prediction, z)
        previous = pred_xstart
        # Clipping would turn an infinite eps into a black or white image.
        yield Sample(step, c.t, x, pred_xstart, (image_sums(output), image_sums(x)))


def sample(
    models: Models, y: Tensor, seeds: Sequence[int], chain: Chain, ranks: Tensor | None = None
) -> Iterator[Sample]:
    """Sample one image per seed with loaded models; yields the state after each step.

    y: (B,) int64 class ids on the models' device, for a conditional U-Net and for the guidance; ranks: (B,) in [0, 1),
    for terms that treat the images of a class differently (see plan.class_rank). After the last step it raises
    NonFiniteError if a value of any step was not finite, even if the image does not show it.
    """
    noise, sums = image_noise(models, seeds), []
    for state in reverse_chain(networks_of(models, seeds), chain, noise(-1), y, noise, ranks):
        sums.append(state.sums)
        yield state
    check_finite(sums, y, seeds)


def image_noise(models: Models, seeds: Sequence[int]) -> ImageNoise:
    """The sampling noise for images of these models, one per seed."""
    preset = models.preset
    return ImageNoise(seeds, (preset.channels, preset.image_size, preset.image_size), models.device)


def networks_of(models: Models, seeds: Sequence[int]) -> Networks:
    """The functions that a chain and its terms may call. seeds: those of the sampling noise, one per image."""
    classifier = models.classifier
    return Networks(
        denoise=denoiser(models.unet, models.preset),
        classify=classifier,
        features=None if classifier is None else getattr(classifier, "features", _no_features),
        fresh_noise=partial(image_noise(models, [_term_seed(seed) for seed in seeds]), 0),
        alphas_cumprod=schedule_of(models.preset).alphas_cumprod,
    )


def _no_features(x: Tensor) -> Tensor:
    """Stands for the missing ``features`` of somebody's own classifier: terms that need them are refused."""
    raise ManifestError("guidance: a term calls features(), which this model's classifier does not have")


def _term_seed(seed: int) -> int:
    """Seed of an image's second stream, for terms, so that their draws do not change the sampler's."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:terms".encode(), digest_size=8).digest(), "big") >> 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats in [-1, 1] to 8-bit pixels, truncated as in the reference."""
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def _split(output: Tensor, channels: int, c: Coefficients) -> tuple[Tensor, Tensor | float]:
    """eps and log Sigma: a learned value between log beta~ and log beta, or log beta if sigma is not learned."""
    if output.shape[1] == channels:
        return output, c.log_beta
    eps, v = output.split(channels, dim=1)
    fraction = (v + 1) / 2
    return eps, fraction * c.log_beta + (1 - fraction) * c.posterior_log_variance


def _ancestral_step(
    state: StepState, c: Coefficients, log_variance: Tensor | float, gradient: Tensor | None, z: Tensor
) -> Tensor:
    """x_{t-1} = mu + Sigma G + [t > 0] sqrt(Sigma) z."""
    log_variance = torch.as_tensor(log_variance, dtype=z.dtype, device=z.device)
    x = c.mean_xstart * state.pred_xstart + c.mean_xt * state.x_t
    if gradient is not None:
        x = x + log_variance.exp() * gradient
    return x + (0.5 * log_variance).exp() * z if state.step > 0 else x


def _guided(state: StepState, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """eps' = eps - sqrt(1 - abar) G and its pred_xstart. Here eps is the one that matches the clipped pred_xstart."""
    root, root_noise = math.sqrt(state.alpha_cumprod), math.sqrt(1 - state.alpha_cumprod)
    eps = (state.x_t - root * state.pred_xstart) / root_noise
    if gradient is None:
        return state.pred_xstart, eps
    eps = eps - root_noise * gradient
    return (state.x_t - root_noise * eps) / root, eps


def _extrapolated(state: StepState, c: Coefficients, pred_xstart: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): pred_xstart extrapolated to mid-step, and the matching eps."""
    middle = pred_xstart + c.multistep_weight * (pred_xstart - previous)
    return middle, (state.x_t - math.sqrt(c.alpha_cumprod) * middle) / math.sqrt(1 - c.alpha_cumprod)


def _ddim_step(state: StepState, c: Coefficients, eta: float, prediction: tuple[Tensor, Tensor], z: Tensor) -> Tensor:
    """DDIM update (Song et al. 2021, eq. 12) from a prediction of x_0 and the matching eps."""
    pred_xstart, eps = prediction
    prev = c.alpha_cumprod_prev
    sigma = eta * math.sqrt((1 - prev) / (1 - c.alpha_cumprod) * (1 - c.alpha_cumprod / prev))
    x = math.sqrt(prev) * pred_xstart + math.sqrt(max(1 - prev - sigma**2, 0.0)) * eps
    return x + sigma * z if state.step > 0 and eta else x
