"""Base classes of guidance terms, the state that a term sees and the networks that it may call.

A term is a frozen dataclass of its parameters, in its own file in ``terms``. A classifier term returns an objective per
image, computed from log p(. | x_t); one classifier forward and one backward pass serve all of them. A score term
computes its gradient from the step's state. A network term may call the networks for it. A start term changes where the
chain begins. Formulas and sources: docs/METHODS.md; how to write a term: docs/TERMS.md. Terms import torch only when
they act, so that reading a manifest is quick.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rarefy.errors import ManifestError, bad

if TYPE_CHECKING:
    from torch import Tensor

Ramp = float | tuple[tuple[float, float], ...]
"""A constant, or (time step, value) points in ascending time, linear between them and constant beyond the ends."""

Denoise = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
"""(x_t (B, C, H, W), t (B,) original time steps, y (B,)) -> eps, followed by v if sigma is learned."""

Classify = Callable[["Tensor", "Tensor"], "Tensor"]
"""(x_t (B, C, H, W), t (B,)) -> logits (B, K)."""

LATER = {"later": True}
"""Metadata of a field that was added later. While it is None, digests leave it out, so old digests stay valid."""


@dataclass(frozen=True, eq=False)
class StepState:
    """One reverse step, before guidance.

    step: index in the respaced chain, where 0 is the last step; t: original time step; alpha_cumprod: abar_t; x_t, eps,
    pred_xstart: (B, C, H, W) float32, pred_xstart clipped to [-1, 1] and detached; y: (B,) target class ids; ranks:
    (B,) in [0, 1), each image's rank within its class (see plan.class_rank), or None.
    """

    step: int
    t: int
    alpha_cumprod: float
    x_t: Tensor
    y: Tensor
    eps: Tensor
    pred_xstart: Tensor
    ranks: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Networks:
    """The functions that a chain and its terms may call.

    features: (B, C, H, W) clean images -> (B, F), the classifier's encoder at t = 0; fresh_noise: () -> standard normal
    (B, C, H, W), from one stream per image that is separate from the sampler's; alphas_cumprod: abar of every original
    step, (T,). A chain without guidance needs only ``denoise``, classifier terms ``classify``, network terms what they
    call.
    """

    denoise: Denoise
    classify: Classify | None = None
    features: Callable[[Tensor], Tensor] | None = None
    fresh_noise: Callable[[], Tensor] | None = None
    alphas_cumprod: Tensor | None = None

    def predict(self, x_t: Tensor, t: int, y: Tensor) -> Tensor:
        """The U-Net's unclipped prediction of the clean image at original step ``t``: one differentiable pass."""
        abar = self._abar(t)
        eps = self.denoise(x_t, times(x_t, t), y)[:, : x_t.shape[1]]
        return (x_t - math.sqrt(1 - abar) * eps) / math.sqrt(abar)

    def renoise(self, x_0: Tensor, t: int) -> Tensor:
        """A sample of q(x_t | x_0) at original step ``t``, with fresh noise."""
        assert self.fresh_noise is not None
        abar = self._abar(t)
        return math.sqrt(abar) * x_0 + math.sqrt(1 - abar) * self.fresh_noise()

    @property
    def num_timesteps(self) -> int:
        """T, the number of steps of the original chain."""
        assert self.alphas_cumprod is not None
        return len(self.alphas_cumprod)

    def _abar(self, t: int) -> float:
        assert self.alphas_cumprod is not None
        return float(self.alphas_cumprod[t])


def import_path(kind: type) -> str:
    """``package.module:Class``."""
    return f"{kind.__module__}:{kind.__qualname__}"


@dataclass(frozen=True, kw_only=True)
class Term:
    """Base class of all terms. window: [low, high] in original time steps, outside which the term is zero; or None.

    ``name`` is the term's name in rows and reports; the default is its import path. A term validates its fields in
    ``__post_init__``. The message of a ValueError should begin with the field's name: the manifest puts the table's
    name before it. needs_classifier: whether it calls ``classify`` or ``features``; without a classifier it is refused.
    """

    name: ClassVar[str]
    needs_classifier: ClassVar[bool] = False
    window: tuple[float, float] | None = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = import_path(cls)

    def __post_init__(self) -> None:
        if self.window is not None and self.window[0] > self.window[1]:
            raise ManifestError(bad("window", list(self.window), "[low, high] in original time steps, low first"))

    def active(self, t: int) -> bool:
        """Whether the term acts at original time step ``t``."""
        return self.window is None or self.window[0] <= t <= self.window[1]


@dataclass(frozen=True, kw_only=True)
class ClassifierTerm(Term):
    """A term whose gradient is that of an objective on the classifier's output."""

    needs_classifier: ClassVar[bool] = True

    def objective(self, log_probs: Tensor, state: StepState) -> Tensor:
        """log_probs (B, K) float32 of the classifier at x_t -> (B,), which is differentiated with respect to x_t."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ScoreTerm(Term):
    """A term that computes its gradient from the step's state, without a network."""

    def gradient(self, state: StepState) -> Tensor:
        """The term's contribution to G, (B, C, H, W)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class NetworkTerm(Term):
    """A term that calls networks. every: it acts at every n-th step, counted from the chain's last step."""

    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1:
            raise ManifestError(bad("every", self.every, "at least 1"))

    def due(self, step: int, t: int) -> bool:
        """Whether the term acts at step ``step`` of the respaced chain, original time step ``t``."""
        return self.active(t) and step % self.every == 0

    def gradient(self, state: StepState, networks: Networks) -> Tensor:
        """The term's contribution to G, (B, C, H, W). It is called under no_grad: enable gradients where needed."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class StartTerm(Term):
    """A term without a gradient: it changes where the chain begins."""

    def __post_init__(self) -> None:
        if self.window is not None:
            raise ManifestError(bad("window", list(self.window), f"a key of {self.name}, which acts before any step"))

    def noisiest(self) -> float:
        """The noisiest original time step that the chain keeps; later ones are skipped."""
        return math.inf

    def begin(self, x_T: Tensor) -> Tensor:
        """The chain's first state from standard normal noise, both (B, C, H, W)."""
        return x_T


KINDS = (ClassifierTerm, ScoreTerm, NetworkTerm, StartTerm)


def times(x: Tensor, t: float) -> Tensor:
    """Time step ``t`` for each image of ``x``, (B,): the networks' time input."""
    return x.new_full((len(x),), float(t))


def at(ramp: Ramp, t: float) -> float:
    """Value of a ramp at original time step ``t``."""
    if not isinstance(ramp, tuple):
        return ramp
    times = [point[0] for point in ramp]
    right = bisect_right(times, t)
    if right == 0:
        return ramp[0][1]
    if right == len(ramp):
        return ramp[-1][1]
    (t_low, low), (t_high, high) = ramp[right - 1], ramp[right]
    return low + (high - low) * (t - t_low) / (t_high - t_low)


def ramp_values(ramp: Ramp) -> list[float]:
    """All values of a ramp's points."""
    return [value for _, value in ramp] if isinstance(ramp, tuple) else [ramp]


def target_log_prob(log_probs: Tensor, y: Tensor) -> Tensor:
    """log p(y), (B,)."""
    return log_probs.gather(1, y[:, None])[:, 0]


def other_log_prob(log_probs: Tensor, y: Tensor) -> Tensor:
    """log(1 - p(y)), (B,), as a log sum over the other classes, which stays exact as p(y) -> 1."""
    others = log_probs.scatter(1, y[:, None], -math.inf)
    return others.logsumexp(dim=1) - log_probs.logsumexp(dim=1)


def entropy(log_probs: Tensor) -> Tensor:
    """H(p) in nats, (B,)."""
    return -(log_probs.exp() * log_probs).sum(dim=1)
