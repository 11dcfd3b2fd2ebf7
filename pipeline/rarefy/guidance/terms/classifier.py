"""Classifier guidance (ADM-G) with entropy-aware scaling (EDS)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rarefy.errors import ManifestError, bad
from rarefy.guidance.base import ClassifierTerm, Ramp, StepState, at, entropy, target_log_prob


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
        target = at(self.scale, state.t) * target_log_prob(log_probs, state.y)
        return target * self._entropy_factor(log_probs.detach()) if self.entropy_scaling else target

    def _entropy_factor(self, log_probs: Tensor) -> Tensor:
        factor = math.log(log_probs.shape[1]) / entropy(log_probs).clamp(min=torch.finfo(log_probs.dtype).tiny)
        return factor if self.max_scale is None else factor.clamp(max=self.max_scale)
