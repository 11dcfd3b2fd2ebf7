"""Classifier guidance (ADM-G) with entropy-aware scaling (EDS)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rarefy.errors import ManifestError, bad
from rarefy.guidance.base import ClassifierTerm, Ramp, StepState, at, entropy, other_log_prob, target_log_prob

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 1e12


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance(ClassifierTerm):
    """scale * grad log p(y | x_t) (Dhariwal & Nichol 2021), optionally with entropy-aware scaling (EDS).

    entropy_scaling: multiply each image's term by log K / H(p) (ED-DPM, ECCV 2022), but at most by ``max_scale``.
    """

    name: ClassVar[str] = "classifier"
    scale: Ramp = 1.0
    entropy_scaling: bool = False
    max_scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_scale is not None and not self.max_scale >= 1:
            raise ManifestError(bad("max_scale", self.max_scale, "a number of at least 1"))

    def objective(self, log_probs: Tensor, state: StepState) -> Tensor:
        scale, target = at(self.scale, state.t), target_log_prob(log_probs, state.y)
        if not self.entropy_scaling:
            return scale * target
        factor = _entropy_factor(log_probs.detach())
        if self.max_scale is not None:
            return scale * target * factor.clamp(max=self.max_scale)
        return _unbounded(scale, factor, log_probs, state.y)


def _entropy_factor(log_probs: Tensor) -> Tensor:
    import torch

    return math.log(log_probs.shape[1]) / entropy(log_probs).clamp(min=torch.finfo(log_probs.dtype).tiny)


def _unbounded(scale: float, factor: Tensor, log_probs: Tensor, y: Tensor) -> Tensor:
    """scale * log p(y) * factor, with a gradient that stays finite and right as H(p) -> 0.

    With u = log(1 - p(y)) the gradient of log p(y) is (1 - p(y)) / p(y) times that of -u. If the classifier is sure of
    y, both 1 - p(y) and H vanish, but H / (1 - p(y)) -> 1 + E[-log p], the mean over the other classes. This form takes
    over where the factor nears the largest number. If the classifier is sure of another class, the formula itself has
    no bound: ``LARGEST`` then limits factor * (1 - p(y)), beyond anything that gives an image.
    """
    import torch

    target = scale * target_log_prob(log_probs, y)
    if log_probs.shape[1] == 1:
        return target * factor
    other = other_log_prob(log_probs, y)
    sure = other.detach()
    factor = torch.minimum(factor, LARGEST * (-sure).exp())
    vanishes = factor * max(1.0, abs(scale)) > torch.finfo(log_probs.dtype).max / 1000
    fixed = log_probs.detach()
    share = (fixed - sure[:, None]).exp().scatter(1, y[:, None], 0.0)
    ratio = math.log(log_probs.shape[1]) / (1 - (share * fixed).sum(dim=1))
    return torch.where(vanishes, -scale * ratio * other, target * factor.masked_fill(vanishes, 0.0))
