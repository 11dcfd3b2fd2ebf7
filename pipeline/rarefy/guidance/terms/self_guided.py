"""Self-guided minority sampling: toward images that the model does not recover after noise is added again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rarefy.errors import ManifestError, bad
from rarefy.guidance.base import Networks, NetworkTerm, Ramp, StepState, at

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SelfGuided(NetworkTerm):
    """scale * g / max |g| per image, g = grad_{x_t} d(pred(x_t), sg[pred(noise(pred(x_t), level * T))]).

    Um & Ye, "Self-Guided Generation of Minority Samples Using Diffusion Models", ECCV 2024. pred is the U-Net's
    unclipped prediction of the clean image; sg stops gradients; d is LPIPS in the paper, and here the squared L2
    distance between features of the noise-aware classifier's encoder at t = 0. Each time it acts, it makes two U-Net
    passes and two of the encoder, and one backward pass through both.
    """

    name: ClassVar[str] = "self-guided"
    needs_classifier: ClassVar[bool] = True
    scale: Ramp = 0.4
    every: int = 5
    level: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.level < 1:
            raise ManifestError(bad("level", self.level, "at least 0 and below 1"))

    def gradient(self, state: StepState, networks: Networks) -> Tensor:
        import torch

        assert networks.features is not None
        noisy_t = int(self.level * networks.num_timesteps)
        with torch.enable_grad():
            x_t = state.x_t.detach().requires_grad_()
            pred = networks.predict(x_t, state.t, state.y)
            features = networks.features(pred)
        again = networks.predict(networks.renoise(pred.detach(), noisy_t), noisy_t, state.y)
        with torch.enable_grad():
            distance = (features - networks.features(again).detach()).square().sum()
            (gradient,) = torch.autograd.grad(distance, x_t)
        peak = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
        return at(self.scale, state.t) * gradient / peak.clamp(min=torch.finfo(peak.dtype).tiny)
