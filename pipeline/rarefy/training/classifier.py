"""Noise-aware classifier training, with ED-DPM's entropy constraint (ECT) as an option."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from rarefy.diffusion.schedule import Schedule
from rarefy.guidance.base import entropy
from rarefy.images import LabelledImages
from rarefy.training.loop import Batch, at_step


class ClassifierLoss:
    """Cross entropy of p(y | x_t), t uniform, plus ``ect`` * (log K - H(p)) (ED-DPM, ECCV 2022; 0 is plain ADM).

    flip: mirror half of the images, as the reference's data loader does; clean: images without noise, at t = 0, for a
    classifier that judges images and guides nothing.
    """

    def __init__(
        self, schedule: Schedule, device: torch.device, ect: float = 0.0, flip: bool = True, clean: bool = False
    ) -> None:
        self.timesteps = schedule.timesteps.to(device)
        self.sqrt_abar = schedule.alphas_cumprod.sqrt().float().to(device)
        self.sqrt_one_minus_abar = (1 - schedule.alphas_cumprod).sqrt().float().to(device)
        self.ect, self.flip, self.clean = ect, flip, clean

    def __call__(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Losses of one batch: loss, cross_entropy, entropy (nats) and accuracy, each a scalar."""
        x_0, count, device = batch.x_0, len(batch.x_0), batch.x_0.device
        k = torch.randint(len(self.timesteps), (count,), generator=batch.generator, device=device)
        noise = torch.randn(x_0.shape, generator=batch.generator, device=device)
        if self.flip:
            mirrored = torch.rand(count, generator=batch.generator, device=device) < 0.5
            x_0 = torch.where(mirrored[:, None, None, None], x_0.flip(-1), x_0)
        x_t = at_step(self.sqrt_abar, k) * x_0 + at_step(self.sqrt_one_minus_abar, k) * noise
        if self.clean:
            k, x_t = torch.zeros_like(k), x_0
        logits = model(x_t, self.timesteps[k])
        with torch.autocast(device.type, enabled=False):
            log_probs = logits.float().log_softmax(-1)
            cross_entropy = nn.functional.nll_loss(log_probs, batch.y)
            mean_entropy = entropy(log_probs).mean()
            loss = cross_entropy + self.ect * (math.log(log_probs.shape[1]) - mean_entropy)
        accuracy = (log_probs.argmax(-1) == batch.y).float().mean()
        return {"loss": loss, "cross_entropy": cross_entropy, "entropy": mean_entropy, "accuracy": accuracy}


@torch.no_grad()
def accuracy_at(model: nn.Module, data: LabelledImages, schedule: Schedule, step: int, batch: int = 500) -> float:
    """Top-1 accuracy on images noised to one step of the chain (step 0 adds next to none)."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(step)
    abar = float(schedule.alphas_cumprod[step])
    hits = 0
    for start in range(0, len(data), batch):
        x_0 = torch.from_numpy(data.images[start : start + batch]).float() / 127.5 - 1
        x_t = x_0 if step == 0 else abar**0.5 * x_0 + (1 - abar) ** 0.5 * torch.randn(x_0.shape, generator=generator)
        t = torch.full((len(x_t),), float(schedule.timesteps[step]), device=device)
        predicted = model(x_t.to(device), t).argmax(-1).cpu()
        hits += int((predicted == torch.from_numpy(data.labels[start : start + batch])).sum())
    return hits / len(data)
