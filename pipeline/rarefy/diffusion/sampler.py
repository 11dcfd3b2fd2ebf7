"""The reverse chain as a generator: ancestral, DDIM and DPM-Solver++ steps, with any sum of guidance terms.

Vocabulary and rounding are those of openai/guided-diffusion; the formulas are in docs/METHODS.md.
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

from rarefy.diffusion.schedule import Schedule, make_schedule
from rarefy.errors import ManifestError, bad
from rarefy.guidance.base import Denoise, Networks, StartTerm, StepState, Term, times
from rarefy.guidance.guide import Guide

if TYPE_CHECKING:
    from rarefy.models.adm import UNet
    from rarefy.models.folder import ModelFolder
    from rarefy.models.load import Models

METHODS = ("ancestral", "ddim", "dpm-solver++")

NoiseSource = Callable[[int], Tensor]
"""Number of the reverse step (0 is the noisiest) -> z of x_t's shape."""


@dataclass(frozen=True, eq=False)
class Chain:
    """What a reverse chain does at each step.

    schedule: its steps, without those that a start term skips; method: ancestral, ddim or dpm-solver++; eta: share of
    noise of the last two, 0 (deterministic) to 1; terms: their gradients add up; classifier_every: steps that one
    classifier pass serves (see Guide).
    """

    schedule: Schedule
    method: str = "ancestral"
    eta: float = 0.0
    terms: Sequence[Term] = ()
    classifier_every: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ManifestError(bad("sampler.method", self.method, f"one of {', '.join(METHODS)}"))
        if not 0 <= self.eta <= 1:
            raise ManifestError(bad("sampler.eta", self.eta, "within 0 and 1"))
        if self.eta and self.method == "ancestral":
            raise ManifestError(bad("sampler.eta", self.eta, "0, for method 'ancestral'"))
        if self.classifier_every < 1:
            raise ManifestError(bad("sampler.classifier_every", self.classifier_every, "at least 1"))
        noisiest = min((term.noisiest() for term in self.terms if isinstance(term, StartTerm)), default=math.inf)
        object.__setattr__(self, "schedule", self.schedule.up_to(noisiest))

    @cached_property
    def coefficients(self) -> list[Coefficients]:
        """One set of float64 numbers a step of the respaced chain."""
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
    """One step's numbers: original time step, abar, abar of the step after it, log variances, posterior mean, 2M."""

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
    """State after a reverse step: x is the less noisy image, pred_xstart this step's prediction of the clean one."""

    step: int
    t: int
    x: Tensor
    pred_xstart: Tensor


class ImageNoise:
    """Standard normal noise from one CPU generator an image: the same for a seed on any device, in any batch."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, int, int], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def __call__(self, step: int) -> Tensor:
        """Next draw, (B, C, H, W) float32. Call once for x_T, then once a step, in order."""
        noise = torch.stack([torch.randn(self.shape, generator=g) for g in self.generators])
        if self.device.type == "cuda":
            return noise.pin_memory().to(self.device, non_blocking=True)
        return noise.to(self.device)


@torch.no_grad()
def reverse_chain(
    networks: Networks, chain: Chain, x_T: Tensor, y: Tensor, noise: NoiseSource, ranks: Tensor | None = None
) -> Iterator[Sample]:
    """Sample by walking the chain from its noisiest step; yields the state after each step.

    x_T: (B, C, H, W) float32, standard normal; y: (B,) class ids, the guidance's target; ranks: (B,) (see StepState).
    The last state's ``x`` is the image, about [-1, 1]. ``noise`` is called once a step, also where the step adds none,
    as the reference draws it.
    """
    x = x_T
    for term in chain.terms:
        x = term.begin(x) if isinstance(term, StartTerm) else x
    previous = x  # prediction of the step before: the first has none, and the multistep weight zero
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
        yield Sample(step, c.t, x, pred_xstart)


@dataclass(frozen=True)
class SamplerSettings:
    """A manifest's sampler: respacing ("250", "10,10,5", "ddim25", "logsnr15") and what Chain takes."""

    method: str = "ancestral"
    steps: str = "250"
    eta: float = 0.0
    classifier_every: int = 1

    def chain(self, preset: ModelFolder, terms: Sequence[Term] = ()) -> Chain:
        """The chain over a preset's schedule; ManifestError where the two do not fit."""
        schedule = make_schedule(preset.schedule, preset.diffusion_steps, self.steps)
        return Chain(schedule, self.method, self.eta, terms, self.classifier_every)


def sample(
    models: Models, y: Tensor, seeds: Sequence[int], chain: Chain, ranks: Tensor | None = None
) -> Iterator[Sample]:
    """Sample one image a seed with loaded models; yields the state after each step.

    y: (B,) int64 class ids on the models' device: the U-Net's class where it is conditional, the guidance's always;
    ranks: (B,) in [0, 1), what a term that spreads over a class goes by (see plan.class_rank).
    """
    noise = image_noise(models, seeds)
    return reverse_chain(networks_of(models, seeds), chain, noise(-1), y, noise, ranks)


def image_noise(models: Models, seeds: Sequence[int]) -> ImageNoise:
    """The noise of images of these models, one seed each."""
    preset = models.preset
    return ImageNoise(seeds, (preset.channels, preset.image_size, preset.image_size), models.device)


def networks_of(models: Models, seeds: Sequence[int]) -> Networks:
    """What a chain over loaded models and its terms may call. seeds: one an image, those of its sampling noise."""
    preset = models.preset
    return Networks(
        denoise=denoiser(models.unet),
        classify=models.classifier,
        features=models.classifier.features,
        fresh_noise=partial(image_noise(models, [_term_seed(seed) for seed in seeds]), 0),
        alphas_cumprod=make_schedule(preset.schedule, preset.diffusion_steps).alphas_cumprod,
    )


def _term_seed(seed: int) -> int:
    """Seed of an image's second stream, for terms: the sampler's draws stay what they are without these."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:terms".encode(), digest_size=8).digest(), "big") >> 1


def denoiser(unet: UNet) -> Denoise:
    """A U-Net as the chain calls it: class ids reach it only where it is conditional."""

    def denoise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        output: Tensor = unet(x, t, None if unet.config.num_classes is None else y)
        return output

    return denoise


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] floats to 8-bit pixels, as the reference truncates them."""
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def _split(output: Tensor, channels: int, c: Coefficients) -> tuple[Tensor, Tensor | float]:
    """eps and log Sigma: learned between log beta~ and log beta, or log beta where sigma is not learned."""
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
    """pred_xstart and eps' = eps - sqrt(1 - abar) G, each from the other and x_t."""
    root, root_noise = math.sqrt(state.alpha_cumprod), math.sqrt(1 - state.alpha_cumprod)
    eps = (state.x_t - root * state.pred_xstart) / root_noise
    if gradient is None:
        return state.pred_xstart, eps
    eps = eps - root_noise * gradient
    return (state.x_t - root_noise * eps) / root, eps


def _extrapolated(state: StepState, c: Coefficients, pred_xstart: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): pred_xstart carried on to the middle of the step, and its eps."""
    middle = pred_xstart + c.multistep_weight * (pred_xstart - previous)
    return middle, (state.x_t - math.sqrt(c.alpha_cumprod) * middle) / math.sqrt(1 - c.alpha_cumprod)


def _ddim_step(state: StepState, c: Coefficients, eta: float, prediction: tuple[Tensor, Tensor], z: Tensor) -> Tensor:
    """DDIM update (Song et al. 2021, eq. 12) from a prediction of x_0 and the eps that belongs to it."""
    pred_xstart, eps = prediction
    prev = c.alpha_cumprod_prev
    sigma = eta * math.sqrt((1 - prev) / (1 - c.alpha_cumprod) * (1 - c.alpha_cumprod / prev))
    x = math.sqrt(prev) * pred_xstart + math.sqrt(max(1 - prev - sigma**2, 0.0)) * eps
    return x + sigma * z if state.step > 0 and eta else x
