"""The two losses: ADM's hybrid loss for the diffusion network, and the noise-aware classifier's cross entropy."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from rarefy.diffusion.schedule import Schedule
from rarefy.guidance.base import entropy
from rarefy.training.data import Batch


class Noising:
    """q(x_t | x_0): random steps of the chain and images noised to them."""

    def __init__(self, schedule: Schedule, device: torch.device) -> None:
        self.timesteps = schedule.timesteps.to(device)
        self.sqrt_abar = schedule.alphas_cumprod.sqrt().float().to(device)
        self.sqrt_one_minus_abar = (1 - schedule.alphas_cumprod).sqrt().float().to(device)

    def draw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Steps k, (B,) int64, uniform, and standard normal noise of x_0's shape."""
        return batch.draw(partial(torch.randint, len(self.timesteps))), batch.draw(torch.randn, *batch.x_0.shape[1:])

    def x_t(self, x_0: Tensor, k: Tensor, noise: Tensor) -> Tensor:
        """x_0 noised to step k."""
        return at_step(self.sqrt_abar, k) * x_0 + at_step(self.sqrt_one_minus_abar, k) * noise


class HybridLoss:
    """L_simple + L_vlb in bits per dimension (Nichol & Dhariwal 2021).

    The predicted mean is detached in the bound, so the bound trains the variance alone. conditional: whether the
    network is given the images' classes.
    """

    def __init__(self, schedule: Schedule, device: torch.device, conditional: bool = True) -> None:
        def table(values: Tensor) -> Tensor:
            return values.float().to(device)

        self.noising, self.conditional = Noising(schedule, device), conditional
        self.log_beta = table(schedule.betas.log())
        self.log_posterior = table(schedule.posterior_log_variance)
        self.coef_xstart = table(schedule.posterior_mean_coef_xstart)
        self.coef_xt = table(schedule.posterior_mean_coef_xt)

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch: loss, mse and (with learned sigma) vlb, each a scalar."""
        return self.at(model, batch.x_0, batch.y, *self.noising.draw(batch))

    def at(self, model: nn.Module, x_0: Tensor, y: Tensor, k: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """The same for given steps k, (B,), and noise, of x_0's shape."""
        x_t = self.noising.x_t(x_0, k, noise)
        output = model(x_t, self.noising.timesteps[k], y if self.conditional else None)
        with torch.autocast(x_0.device.type, enabled=False):
            eps = output[:, : x_0.shape[1]].float()
            mse = (eps - noise).square().mean()
            if output.shape[1] == x_0.shape[1]:
                return {"loss": mse, "mse": mse}
            v = output[:, x_0.shape[1] :].float()
            vlb = self._bound(x_0, x_t, eps.detach(), v, k).mean()
        return {"loss": mse + vlb, "mse": mse, "vlb": vlb}

    def _bound(self, x_0: Tensor, x_t: Tensor, eps: Tensor, v: Tensor, k: Tensor) -> Tensor:
        """Each image's term of the variational bound at step k, (B,) bits per dimension."""
        fraction = (v + 1) / 2
        log_variance = fraction * at_step(self.log_beta, k) + (1 - fraction) * at_step(self.log_posterior, k)
        noising = self.noising
        pred = (x_t - at_step(noising.sqrt_one_minus_abar, k) * eps) / at_step(noising.sqrt_abar, k)
        coef_xstart, coef_xt = at_step(self.coef_xstart, k), at_step(self.coef_xt, k)
        mean = coef_xstart * pred.clamp(-1, 1) + coef_xt * x_t
        true_mean = coef_xstart * x_0 + coef_xt * x_t
        kl = _normal_kl(true_mean, at_step(self.log_posterior, k), mean, log_variance)
        nll = -_discretised_log_likelihood(x_0, mean, 0.5 * log_variance)
        bits: Tensor = torch.where((k == 0)[:, None, None, None], nll, kl).flatten(1).mean(1) / math.log(2)
        return bits


class ClassifierLoss:
    """Cross entropy of p(y | x_t), t uniform, plus ``ect`` * (log K - H(p)) (ED-DPM, ECCV 2022; 0 is plain ADM).

    clean: train on images without noise, at t = 0, for a classifier that measures images and guides nothing.
    """

    def __init__(self, schedule: Schedule, device: torch.device, ect: float = 0.0, clean: bool = False) -> None:
        self.noising = Noising(schedule, device)
        self.ect, self.clean = ect, clean

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch: loss, cross_entropy, entropy (nats) and accuracy, each a scalar."""
        x_0 = batch.x_0
        k, noise = self.noising.draw(batch)
        if self.clean:
            k, x_t = torch.zeros_like(k), x_0
        else:
            x_t = self.noising.x_t(x_0, k, noise)
        logits = model(x_t, self.noising.timesteps[k])
        with torch.autocast(x_0.device.type, enabled=False):
            log_probs = logits.float().log_softmax(-1)
            cross_entropy = nn.functional.nll_loss(log_probs, batch.y)
            mean_entropy = entropy(log_probs).mean()
            loss = cross_entropy + self.ect * (math.log(log_probs.shape[1]) - mean_entropy)
        accuracy = (log_probs.argmax(-1) == batch.y).float().mean()
        return {"loss": loss, "cross_entropy": cross_entropy, "entropy": mean_entropy, "accuracy": accuracy}


def at_step(table: Tensor, k: Tensor) -> Tensor:
    """Entries of a schedule's table, shaped to multiply images. table: (S,); k: (B,) -> (B, 1, 1, 1)."""
    return table[k][:, None, None, None]


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
