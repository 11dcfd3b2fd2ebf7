"""Guidance terms: what each adds to the score at the noisy image.

A term is a frozen dataclass of its parameters. Classifier terms give an objective an image, from log p(. | x_t); one
classifier forward and one backward serve their sum. Score terms give their gradient directly from the step's state.
Formulas and sources: docs/METHODS.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import ManifestError, bad

Ramp = float | tuple[tuple[float, float], ...]
"""A constant, or (time step, value) points in ascending time, linear between them and constant beyond the ends."""


@dataclass(frozen=True, eq=False)
class StepState:
    """One reverse step, before guidance.

    step: index in the respaced chain; t: original time step; alpha_cumprod: abar_t; x_t, eps, pred_xstart:
    (B, C, H, W) float32, pred_xstart clipped to [-1, 1] and detached; y: (B,) target class ids.
    """

    step: int
    t: int
    alpha_cumprod: float
    x_t: Tensor
    y: Tensor
    eps: Tensor
    pred_xstart: Tensor


@dataclass(frozen=True, kw_only=True)
class Term:
    """Base of all terms. window: [low, high] in original time steps, outside which the term is zero; None is always."""

    window: tuple[float, float] | None = None

    def active(self, t: int) -> bool:
        """Whether the term acts at original time step ``t``."""
        return self.window is None or self.window[0] <= t <= self.window[1]

    @property
    def name(self) -> str:
        """The term's name in a manifest."""
        return next(name for name, kind in TERMS.items() if kind is type(self))


@dataclass(frozen=True, kw_only=True)
class ClassifierTerm(Term):
    """A term whose gradient is that of an objective of the classifier's output."""

    def objective(self, log_probs: Tensor, y: Tensor, t: int) -> Tensor:
        """log_probs: (B, K) float32; y: (B,) -> (B,), to be differentiated with respect to x_t."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ScoreTerm(Term):
    """A term whose gradient follows from the step's state without a network."""

    def gradient(self, state: StepState) -> Tensor:
        """The term's contribution to G, (B, C, H, W)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance(ClassifierTerm):
    """scale * grad log p(y | x_t) (Dhariwal & Nichol 2021), optionally with entropy-aware scaling (EDS).

    entropy_scaling: multiply an image's term by log K / H(p) (ED-DPM, ECCV 2022), at most by ``max_scale`` if given.
    """

    scale: Ramp = 1.0
    entropy_scaling: bool = False
    max_scale: float | None = None

    def objective(self, log_probs: Tensor, y: Tensor, t: int) -> Tensor:
        target = at(self.scale, t) * target_log_prob(log_probs, y)
        return target * self._entropy_factor(log_probs.detach()) if self.entropy_scaling else target

    def _entropy_factor(self, log_probs: Tensor) -> Tensor:
        factor = math.log(log_probs.shape[1]) / entropy(log_probs).clamp(min=torch.finfo(log_probs.dtype).tiny)
        return factor if self.max_scale is None else factor.clamp(max=self.max_scale)


@dataclass(frozen=True, kw_only=True)
class LowConfidence(ClassifierTerm):
    """scale * grad [tau log p + (1 - tau) log(1 - p)], p = p(y | x_t): toward the confidence tau.

    Our reconstruction of arXiv 2606.13347 from its abstract. tau = 1 is classifier guidance.
    """

    scale: Ramp = 1.0
    tau: Ramp = 0.5

    def objective(self, log_probs: Tensor, y: Tensor, t: int) -> Tensor:
        tau = at(self.tau, t)
        pull = tau * target_log_prob(log_probs, y)
        if tau != 1:
            pull = pull + (1 - tau) * other_log_prob(log_probs, y)
        return at(self.scale, t) * pull


@dataclass(frozen=True, kw_only=True)
class PredictedRealImage(ScoreTerm):
    """gamma(t) * (sqrt(abar_t) pred_xstart - x_t) / (1 - abar_t): toward (gamma > 0) the model's predicted real image.

    Our reconstruction of arXiv 2606.13347 from its abstract. Costs no network pass; a negative gamma explores.
    """

    gamma: Ramp = 0.0

    def gradient(self, state: StepState) -> Tensor:
        pull = math.sqrt(state.alpha_cumprod) * state.pred_xstart - state.x_t
        return at(self.gamma, state.t) / (1 - state.alpha_cumprod) * pull


TERMS: dict[str, type[Term]] = {
    "classifier": ClassifierGuidance,
    "low-confidence": LowConfidence,
    "predicted-real-image": PredictedRealImage,
}

Classify = Callable[[Tensor, Tensor], Tensor]


class Guide:
    """The guidance of one reverse chain: call it with the state of each step, in order.

    classify: (x_t, t (B,)) -> logits (B, K); one call serves all classifier terms, none is made where no such term is
    active. classifier_every: the call is made at the first step at which the active classifier terms are these, and at
    every n-th step from there; the steps between take its gradient as it is.
    """

    def __init__(self, terms: Sequence[Term], classify: Classify | None, classifier_every: int = 1) -> None:
        self.terms, self.classify, self.classifier_every = terms, classify, classifier_every
        self._active: list[ClassifierTerm] = []
        self._age = 0
        self._gradient: Tensor | None = None

    def __call__(self, state: StepState) -> Tensor | None:
        """G: the sum of the terms active at this step, (B, C, H, W) float32; None where none is."""
        active = [term for term in self.terms if term.active(state.t)]
        total = self._classifier_share([term for term in active if isinstance(term, ClassifierTerm)], state)
        for term in active:
            if isinstance(term, ScoreTerm):
                gradient = term.gradient(state)
                total = gradient if total is None else total + gradient
        return total

    def _classifier_share(self, active: list[ClassifierTerm], state: StepState) -> Tensor | None:
        if active != self._active:  # a kept gradient would carry a term past its window
            self._active, self._age, self._gradient = active, 0, None
        if active and self._age % self.classifier_every == 0:
            assert self.classify is not None
            self._gradient = _classifier_gradient(active, state, self.classify)
        self._age += 1
        return self._gradient


def _classifier_gradient(terms: Sequence[ClassifierTerm], state: StepState, classify: Classify) -> Tensor:
    with torch.enable_grad():
        x_t = state.x_t.detach().requires_grad_()
        times = torch.full((len(x_t),), float(state.t), device=x_t.device, dtype=x_t.dtype)
        log_probs = classify(x_t, times).log_softmax(dim=-1)
        objective = torch.stack([term.objective(log_probs, state.y, state.t) for term in terms]).sum()
        (gradient,) = torch.autograd.grad(objective, x_t)
    return gradient


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


def target_log_prob(log_probs: Tensor, y: Tensor) -> Tensor:
    """log p(y), (B,)."""
    return log_probs.gather(1, y[:, None])[:, 0]


def other_log_prob(log_probs: Tensor, y: Tensor) -> Tensor:
    """log(1 - p(y)) as the log sum of the other classes, which stays exact as p(y) -> 1. (B,)."""
    others = log_probs.scatter(1, y[:, None], -torch.inf)
    return others.logsumexp(dim=1) - log_probs.logsumexp(dim=1)


def entropy(log_probs: Tensor) -> Tensor:
    """H(p) in nats, (B,)."""
    return -(log_probs.exp() * log_probs).sum(dim=1)


def parse_term(table: Mapping[str, object], field: str) -> Term:
    """Make a term from a manifest's [[guidance]] table. Raises ManifestError naming the key and what is allowed."""
    name = table.get("term")
    if not isinstance(name, str) or name not in TERMS:
        raise ManifestError(bad(f"{field}.term", name, f"one of {', '.join(TERMS)}"))
    kind = TERMS[name]
    known = {f.name: f for f in dataclasses.fields(kind)}
    values: dict[str, object] = {}
    for key, value in table.items():
        if key == "term":
            continue
        if key not in known:
            raise ManifestError(bad(f"{field}.{key}", value, f"a key of {name}, which has {', '.join(sorted(known))}"))
        values[key] = _parse_value(key, value, f"{field}.{key}")
    return kind(**values)  # type: ignore[arg-type] # each value was checked for its key above


def _parse_value(key: str, value: object, field: str) -> object:
    if key == "window":
        return _window(value, field)
    if key == "entropy_scaling":
        if not isinstance(value, bool):
            raise ManifestError(bad(field, value, "true or false"))
        return value
    if key == "max_scale":
        if not _is_number(value) or not float(value) >= 1:  # type: ignore[arg-type]
            raise ManifestError(bad(field, value, "a number of at least 1"))
        return float(value)  # type: ignore[arg-type]
    ramp = _ramp(value, field)
    points = [ramp] if isinstance(ramp, float) else [v for _, v in ramp]
    if key == "tau" and not all(0 <= v <= 1 for v in points):
        raise ManifestError(bad(field, value, "within 0 and 1"))
    return ramp


def _window(value: object, field: str) -> tuple[float, float]:
    if isinstance(value, Sequence) and len(value) == 2 and all(_is_number(v) for v in value) and value[0] <= value[1]:
        return float(value[0]), float(value[1])
    raise ManifestError(bad(field, value, "[low, high] in original time steps, low first"))


def _ramp(value: object, field: str) -> Ramp:
    if _is_number(value):
        return float(value)  # type: ignore[arg-type]
    allowed = "a number or [[time step, value], ...] in ascending time"
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ManifestError(bad(field, value, allowed))
    points = []
    for point in value:
        if not isinstance(point, Sequence) or len(point) != 2 or not all(_is_number(v) for v in point):
            raise ManifestError(bad(field, value, allowed))
        points.append((float(point[0]), float(point[1])))
    if any(a[0] >= b[0] for a, b in itertools.pairwise(points)):
        raise ManifestError(bad(field, value, allowed))
    return tuple(points)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
