"""The sum of all terms' contributions to the score, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rarefy.guidance.base import ClassifierTerm, Classify, Networks, NetworkTerm, ScoreTerm, StepState, Term, times


class Guide:
    """The guidance of one reverse chain: call it with the state of each step, in order.

    One call of ``networks.classify`` serves all classifier terms; there is none while no such term is active.
    classifier_every: the classifier is called at every n-th step, and the steps between reuse its gradient unchanged.
    Whenever the set of active classifier terms changes, it is called at once and the count starts again.
    """

    def __init__(self, terms: Sequence[Term], networks: Networks, classifier_every: int = 1) -> None:
        self.terms, self.networks, self.classifier_every = terms, networks, classifier_every
        self._active: list[ClassifierTerm] = []
        self._age = 0
        self._gradient: Tensor | None = None

    def __call__(self, state: StepState) -> Tensor | None:
        """G, (B, C, H, W) float32: the sum of the terms that are active at this step; None if there are none."""
        active = [term for term in self.terms if term.active(state.t)]
        total = self._classifier_part([term for term in active if isinstance(term, ClassifierTerm)], state)
        for term in active:
            gradient = self._own_gradient(term, state)
            if gradient is not None:
                total = gradient if total is None else total + gradient
        return total

    def _own_gradient(self, term: Term, state: StepState) -> Tensor | None:
        if isinstance(term, ScoreTerm):
            return term.gradient(state)
        if isinstance(term, NetworkTerm) and term.due(state.step, state.t):
            return term.gradient(state, self.networks)
        return None

    def _classifier_part(self, active: list[ClassifierTerm], state: StepState) -> Tensor | None:
        if active != self._active:  # the reused gradient would extend a term past its window
            self._active, self._age, self._gradient = active, 0, None
        if active and self._age % self.classifier_every == 0:
            assert self.networks.classify is not None
            self._gradient = _classifier_gradient(active, state, self.networks.classify)
        self._age += 1
        return self._gradient


def _classifier_gradient(terms: Sequence[ClassifierTerm], state: StepState, classify: Classify) -> Tensor:
    with torch.enable_grad():
        x_t = state.x_t.detach().requires_grad_()
        log_probs = classify(x_t, times(x_t, state.t)).log_softmax(dim=-1)
        objective = torch.stack([term.objective(log_probs, state) for term in terms]).sum()
        (gradient,) = torch.autograd.grad(objective, x_t)
    return gradient
