"""Guidance toward, or away from, the model's predicted real image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rarefy.guidance.base import Ramp, ScoreTerm, StepState, at

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PredictedRealImage(ScoreTerm):
    """gamma(t) * (sqrt(abar_t) pred_xstart - x_t) / (1 - abar_t): toward (gamma > 0) the model's predicted real image.

    Reconstructed from the abstract of arXiv 2606.13347. It costs no network pass. A negative gamma moves away from the
    prediction. The default is the sweep's best (docs/RESULTS.md): negative at high noise, zero at low noise.
    """

    name: ClassVar[str] = "predicted-real-image"
    gamma: Ramp = ((300.0, 0.0), (500.0, -0.05))

    def gradient(self, state: StepState) -> Tensor:
        pull = math.sqrt(state.alpha_cumprod) * state.pred_xstart - state.x_t
        return at(self.gamma, state.t) / (1 - state.alpha_cumprod) * pull
