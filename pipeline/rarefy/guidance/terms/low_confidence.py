"""Guidance toward a target confidence: the same for all images, or spread over the images of a class."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rarefy.errors import ManifestError, bad
from rarefy.guidance.base import (
    LATER,
    ClassifierTerm,
    Ramp,
    StepState,
    at,
    other_log_prob,
    ramp_values,
    target_log_prob,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LowConfidence(ClassifierTerm):
    """scale * grad [tau log p + (1 - tau) log(1 - p)], p = p(y | x_t): toward the confidence tau.

    Reconstructed from the abstract of arXiv 2606.13347. tau = 1 is classifier guidance. tau_quantiles: instead of
    one tau, the quantile function of the target confidences, given at evenly spaced ranks from 0 to 1 and linear in
    between; each image's tau is the value at its rank.
    """

    name: ClassVar[str] = "low-confidence"
    scale: Ramp = 1.0
    tau: Ramp | None = None  # 0.5 unless tau_quantiles is given
    tau_quantiles: tuple[float, ...] | None = field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau_quantiles is not None:
            self._check_quantiles(self.tau_quantiles)
        elif self.tau is None:
            object.__setattr__(self, "tau", 0.5)
        elif not all(0 <= value <= 1 for value in ramp_values(self.tau)):
            raise ManifestError(bad("tau", self.tau, "from 0 to 1"))

    def _check_quantiles(self, quantiles: tuple[float, ...]) -> None:
        if self.tau is not None:
            raise ManifestError(bad("tau_quantiles", list(quantiles), "allowed together with tau: give one of the two"))
        ascending = all(low <= high for low, high in itertools.pairwise(quantiles))
        if len(quantiles) < 2 or not ascending or not 0 <= quantiles[0] <= quantiles[-1] <= 1:
            raise ManifestError(bad("tau_quantiles", list(quantiles), "two or more ascending numbers from 0 to 1"))

    def objective(self, log_probs: Tensor, state: StepState) -> Tensor:
        tau = self._tau(state, log_probs)
        pull = tau * target_log_prob(log_probs, state.y)
        if not (isinstance(tau, float | int) and tau == 1):
            pull = pull + (1 - tau) * other_log_prob(log_probs, state.y)
        return at(self.scale, state.t) * pull

    def _tau(self, state: StepState, log_probs: Tensor) -> Tensor | float:
        """One number, or (B,) with quantiles. Without ranks every image has rank 0.5."""
        if self.tau is not None:
            return at(self.tau, state.t)
        ranks = log_probs.new_full(log_probs.shape[:1], 0.5) if state.ranks is None else state.ranks.to(log_probs)
        return quantile_function(log_probs.new_tensor(self.tau_quantiles), ranks)


def quantile_function(values: Tensor, ranks: Tensor) -> Tensor:
    """The piecewise linear function with ``values`` (N,) at evenly spaced ranks from 0 to 1. ranks: (B,) -> (B,)."""
    place = ranks * (len(values) - 1)
    low = place.floor().long().clamp(max=len(values) - 2)
    return values[low].lerp(values[low + 1], place - low)
