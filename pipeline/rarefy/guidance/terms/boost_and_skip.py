"""Boost-and-Skip: start with more noise than the model was trained on, and skip the first steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rarefy.errors import ManifestError, bad
from rarefy.guidance.base import StartTerm

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class BoostAndSkip(StartTerm):
    """x_T ~ N(0, gamma^2 I), and the steps above original time step ``start`` are skipped.

    Um, Kim & Ye, "Boost-and-Skip: A Simple Guidance-Free Diffusion for Minority Generation", ICML 2025. The defaults
    are the paper's for 64-pixel faces: gamma 4, without the first 3 of 250 steps. It costs no network pass.
    """

    name: ClassVar[str] = "boost-and-skip"
    gamma: float = 4.0
    start: int = 987

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0:
            raise ManifestError(bad("gamma", self.gamma, "above 0"))
        if self.start < 0:
            raise ManifestError(bad("start", self.start, "an original time step, at least 0"))

    def noisiest(self) -> float:
        return self.start

    def begin(self, x_T: Tensor) -> Tensor:
        return self.gamma * x_T
