"""An example of a guidance term: it guides toward the border between the two most likely classes.

A manifest names it by its import path (see docs/TERMS.md and examples/boundary.toml).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rarefy.errors import ManifestError, bad
from rarefy.guidance import ClassifierTerm, Ramp, StepState, at


@dataclass(frozen=True, kw_only=True)
class Boundary(ClassifierTerm):
    """-scale * grad |log p(first) - log p(second) - margin|: toward a gap of ``margin`` nats."""

    scale: Ramp = 1.0
    margin: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.margin < 0:
            raise ManifestError(bad("margin", self.margin, "at least 0 nats"))

    def objective(self, log_probs: Tensor, state: StepState) -> Tensor:
        top = log_probs.topk(2, dim=1).values
        return -at(self.scale, state.t) * (top[:, 0] - top[:, 1] - self.margin).abs()
