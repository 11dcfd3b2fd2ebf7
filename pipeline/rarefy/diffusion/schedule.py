"""Noise schedules and respacing (Ho et al. 2020; Nichol & Dhariwal 2021), computed in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, repeat
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rarefy.diffusion.settings import RESPACINGS
from rarefy.errors import ManifestError, bad, one_of

if TYPE_CHECKING:
    from rarefy.models.folder import ModelFolder

SCHEDULES = ("linear", "scaled_linear", "cosine")
SMALLEST_ALPHA_CUMPROD = 1e-70
"""At the end of a chain. Far below any schedule in use, but its square root is still a normal float32."""
LOGSNR_START = -5.1
"""Half log-SNR where "logsnrN" starts, as in DPM-Solver (Lu et al.). With more noise, pred_xstart is mostly clipped."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """A (respaced) discrete diffusion chain.

    timesteps: (S,) int64, the kept original time steps, ascending; they are the network's time input.
    betas: (S,) float64, of the respaced chain.
    """

    timesteps: Tensor
    betas: Tensor

    def __len__(self) -> int:
        return len(self.betas)

    def up_to(self, t: float) -> Schedule:
        """This chain without the steps above original time step ``t``. Raises ManifestError if none is left."""
        count = int((self.timesteps <= t).sum())
        if not count:
            raise ManifestError(bad("start", t, f"at least {int(self.timesteps[0])}, the chain's least noisy step"))
        return self if count == len(self) else Schedule(self.timesteps[:count], self.betas[:count])

    def thinned(self, count: int) -> Schedule:
        """``count`` of the chain's steps, evenly spaced from the first to the last. count: from 1 to len(self)."""
        chosen = torch.linspace(0, len(self) - 1, count, dtype=torch.float64).round().long()
        return _through(self.timesteps[chosen], self.alphas_cumprod[chosen])

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """abar_t, (S,) float64."""
        return torch.cumprod(1 - self.betas, 0)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """abar of the next, less noisy step, (S,) float64; 1 for the clean image."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])

    @cached_property
    def half_log_snr(self) -> Tensor:
        """lambda = log(sqrt(abar) / sqrt(1 - abar)), (S,) float64."""
        return _half_log_snr(self.alphas_cumprod)

    @cached_property
    def multistep_weight(self) -> Tensor:
        """h / (2 h'), where h is a step's length in lambda and h' that of the step before it, (S,) float64.

        This is the weight of the difference term of DPM-Solver++(2M). It is zero at the first step, which has no step
        before it, and at the last, whose h is infinite.
        """
        h = -self.half_log_snr.diff()
        weight = torch.zeros_like(self.betas)
        weight[1:-1] = h[:-1] / (2 * h[1:])
        return weight

    @cached_property
    def posterior_variance(self) -> Tensor:
        """beta~ of q(x_{t-1} | x_t, x_0), (S,) float64; zero at the first step."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance(self) -> Tensor:
        """log beta~; the first step has its neighbour's value instead of log 0, as in the reference."""
        clipped = self.posterior_variance.clone()
        clipped[0] = self.posterior_variance[1] if len(self) > 1 else self.betas[0]
        return clipped.log()

    @cached_property
    def posterior_mean_coef_xstart(self) -> Tensor:
        """Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0)."""
        return self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef_xt(self) -> Tensor:
        """Weight of x_t in the mean of q(x_{t-1} | x_t, x_0)."""
        return (1 - self.alphas_cumprod_prev) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)


def make_betas(name: str, num_timesteps: int, beta_range: tuple[float, float] | None = None) -> Tensor:
    """Betas of a full chain, (num_timesteps,) float64.

    name: ``linear``; ``scaled_linear``, whose square roots are linear (latent diffusion); ``cosine``, which diffusers
    calls squaredcos_cap_v2. beta_range: first and last beta of the first two; the default is ADM's 1e-4 and 0.02, times
    1000 / num_timesteps. Raises ManifestError.
    """
    if num_timesteps < 1:
        raise ManifestError(bad("diffusion_steps", num_timesteps, "at least 1"))
    if name not in SCHEDULES:
        raise ManifestError(bad("schedule", name, one_of(name, list(SCHEDULES))))
    if name == "cosine":
        if beta_range is not None:
            raise ManifestError(bad("beta_range", list(beta_range), "allowed: the cosine schedule has its own betas"))
        s = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
        bar = torch.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    scale = 1000 / num_timesteps
    first, last = beta_range or (scale * 1e-4, scale * 0.02)
    if not 0 < first <= last < 1:
        raise ManifestError(bad("beta_range", [first, last], "[first, last] with 0 < first <= last < 1"))
    power = 2 if name == "scaled_linear" else 1
    betas = torch.linspace(first ** (1 / power), last ** (1 / power), num_timesteps, dtype=torch.float64) ** power
    if (1 - betas).prod() < SMALLEST_ALPHA_CUMPROD:
        allowed = f"small enough for {num_timesteps} steps: the noise covers the image until nothing can be computed"
        raise ManifestError(bad("beta_range", [first, last], allowed))
    return betas


def kept_timesteps(alphas_cumprod: Tensor, respacing: str, start: int | None = None) -> list[int]:
    """The original time steps that a respaced chain keeps, ascending.

    alphas_cumprod: abar of the full chain, (T,) float64. respacing: "" (all), a count ("250"), section counts
    ("10,10,5", least noisy section first), "ddimN" (a fixed integer stride) or "logsnrN" (equal steps of half log-SNR).
    start: the noisiest step that may be kept; None for all. Raises ManifestError for counts below 1 or above the number
    of steps.
    """
    if start is not None:
        alphas_cumprod = alphas_cumprod[: start + 1]
    num_timesteps = len(alphas_cumprod)
    if not respacing:
        return list(range(num_timesteps))
    if respacing.startswith("ddim"):
        return _ddim_steps(num_timesteps, _count(respacing[4:], respacing))
    if respacing.startswith("logsnr"):
        return _logsnr_steps(_half_log_snr(alphas_cumprod), _count(respacing[6:], respacing))
    counts = [_count(part, respacing) for part in respacing.split(",")]
    steps: list[int] = []
    start = 0
    for index, count in enumerate(counts):
        size = num_timesteps // len(counts) + (index < num_timesteps % len(counts))
        if count > size:
            allowed = f"within the chain: section {index + 1} has {size} of {num_timesteps} steps"
            raise ManifestError(bad("steps", respacing, allowed))
        stride = 1.0 if count == 1 else (size - 1) / (count - 1)
        # The reference accumulates the stride; multiplying it would round differently for 278 of 1,000 counts.
        steps += [start + round(place) for place in accumulate(repeat(stride, count - 1), initial=0.0)]
        start += size
    return steps


def make_schedule(
    name: str,
    num_timesteps: int = 1000,
    respacing: str = "",
    beta_range: tuple[float, float] | None = None,
    start: int | None = None,
) -> Schedule:
    """The named schedule of ``num_timesteps`` steps (see make_betas), respaced (see kept_timesteps)."""
    alphas_cumprod = torch.cumprod(1 - make_betas(name, num_timesteps, beta_range), 0)
    steps = torch.tensor(kept_timesteps(alphas_cumprod, respacing, start))
    return _through(steps, alphas_cumprod[steps])


def schedule_of(model: ModelFolder, respacing: str = "", start: int | None = None) -> Schedule:
    """A model's noise schedule, respaced (see kept_timesteps)."""
    return make_schedule(model.schedule, model.diffusion_steps, respacing, model.beta_range, start)


def _through(timesteps: Tensor, alphas_cumprod: Tensor) -> Schedule:
    """The chain with these time steps at these noise levels, (S,) each."""
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return Schedule(timesteps=timesteps, betas=1 - alphas_cumprod / previous)


def _ddim_steps(num_timesteps: int, count: int) -> list[int]:
    for stride in range(1, num_timesteps + 1):
        steps = list(range(0, num_timesteps, stride))
        if len(steps) == count:
            return steps
    raise ManifestError(
        bad("steps", f"ddim{count}", f"a count that an integer stride gives over {num_timesteps} steps")
    )


def _logsnr_steps(half_log_snr: Tensor, count: int) -> list[int]:
    """The steps nearest to ``count`` equally spaced values from LOGSNR_START (or the chain's end) to the first step.

    If two values have the same nearest step, the second takes the next free one.
    """
    available = int((half_log_snr >= LOGSNR_START).sum())
    if count > available:
        allowed = f"within the chain: it has {available} steps of half log-SNR {LOGSNR_START} or more"
        raise ManifestError(bad("steps", f"logsnr{count}", allowed))
    low, high = half_log_snr[available - 1].item(), half_log_snr[0].item()
    targets = torch.linspace(low, high, count, dtype=torch.float64).flip(0)
    steps: list[int] = []
    for k, nearest in enumerate((half_log_snr[:available] - targets[:, None]).abs().argmin(1).tolist()):
        free = steps[-1] + 1 if steps else 0
        steps.append(min(max(nearest, free), available - count + k))
    return steps


def _half_log_snr(alphas_cumprod: Tensor) -> Tensor:
    return 0.5 * (alphas_cumprod.log() - (-alphas_cumprod).log1p())


def _count(text: str, respacing: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ManifestError(bad("steps", respacing, RESPACINGS))
    return int(text)
