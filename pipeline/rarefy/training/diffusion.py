"""ADM training: the hybrid loss of Nichol & Dhariwal 2021 (L_simple plus the variational bound on the variance)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rarefy.diffusion.schedule import Schedule
from rarefy.training.loop import Batch, at_step


class HybridLoss:
    """L_simple + L_vlb in bits per dimension, the bound's mean detached so that it trains the variance alone."""

    def __init__(self, schedule: Schedule, device: torch.device) -> None:
        def table(values: Tensor) -> Tensor:
            return values.float().to(device)

        self.timesteps = schedule.timesteps.to(device)
        self.sqrt_abar = table(schedule.alphas_cumprod.sqrt())
        self.sqrt_one_minus_abar = table((1 - schedule.alphas_cumprod).sqrt())
        self.log_beta = table(schedule.betas.log())
        self.log_posterior = table(schedule.posterior_log_variance)
        self.coef_xstart = table(schedule.posterior_mean_coef_xstart)
        self.coef_xt = table(schedule.posterior_mean_coef_xt)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch: loss, mse and (with learned sigma) vlb, each a scalar."""
        x_0, count = batch.x_0, len(batch.x_0)
        k = torch.randint(len(self.timesteps), (count,), generator=batch.generator, device=x_0.device)
        noise = torch.randn(x_0.shape, generator=batch.generator, device=x_0.device)
        x_t = at_step(self.sqrt_abar, k) * x_0 + at_step(self.sqrt_one_minus_abar, k) * noise
        conditional = getattr(model, "config").num_classes is not None  # noqa: B009 - nn.Module hides attributes
        output = model(x_t, self.timesteps[k], batch.y if conditional else None)
        with torch.autocast(x_0.device.type, enabled=False):
            eps = output[:, : x_0.shape[1]].float()
            mse = (eps - noise).square().mean()
            if output.shape[1] == x_0.shape[1]:
                return {"loss": mse, "mse": mse}
            v = output[:, x_0.shape[1] :].float()
            vlb = self._bound(x_0, x_t, eps.detach(), v, k).mean()
        return {"loss": mse + vlb, "mse": mse, "vlb": vlb}

    def _bound(self, x_0: Tensor, x_t: Tensor, eps: Tensor, v: Tensor, k: Tensor) -> Tensor:
        """One term of the variational bound an image, (B,) bits per dimension."""
        fraction = (v + 1) / 2
        log_variance = fraction * at_step(self.log_beta, k) + (1 - fraction) * at_step(self.log_posterior, k)
        pred = (x_t - at_step(self.sqrt_one_minus_abar, k) * eps) / at_step(self.sqrt_abar, k)
        coef_xstart, coef_xt = at_step(self.coef_xstart, k), at_step(self.coef_xt, k)
        mean = coef_xstart * pred.clamp(-1, 1) + coef_xt * x_t
        true_mean = coef_xstart * x_0 + coef_xt * x_t
        kl = _normal_kl(true_mean, at_step(self.log_posterior, k), mean, log_variance)
        nll = -_discretised_log_likelihood(x_0, mean, 0.5 * log_variance)
        bits: Tensor = torch.where((k == 0)[:, None, None, None], nll, kl).flatten(1).mean(1) / math.log(2)
        return bits


def _normal_kl(mean_p: Tensor, log_variance_p: Tensor, mean_q: Tensor, log_variance_q: Tensor) -> Tensor:
    """KL(N_p || N_q) in nats, elementwise."""
    gap = log_variance_p - log_variance_q
    return 0.5 * (gap.exp() - 1 - gap + (mean_p - mean_q).square() * (-log_variance_q).exp())


def _discretised_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log probability of 8-bit pixels x in [-1, 1] under a Gaussian, elementwise, in nats (Ho et al. 2020, eq. 13)."""
    inverse = (-log_scale).exp()
    upper = torch.special.ndtr((x - mean + 1 / 255) * inverse)
    lower = torch.special.ndtr((x - mean - 1 / 255) * inverse)
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()
