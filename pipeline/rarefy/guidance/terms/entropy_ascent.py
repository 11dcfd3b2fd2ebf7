"""Guidance toward images of any class that the classifier is unsure of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rarefy.guidance.base import ClassifierTerm, Ramp, StepState, at, entropy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EntropyAscent(ClassifierTerm):
    """scale * grad H(p(. | x_t)), H in nats: an ablation of low-confidence that ignores the target class."""

    name: ClassVar[str] = "entropy"
    scale: Ramp = 1.0

    def objective(self, log_probs: Tensor, state: StepState) -> Tensor:
        return at(self.scale, state.t) * entropy(log_probs)
