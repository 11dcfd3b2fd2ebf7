"""Guidance terms: the base classes and helpers for writing one (docs/TERMS.md)."""

from rarefy.guidance.base import (
    ClassifierTerm,
    Networks,
    NetworkTerm,
    Ramp,
    ScoreTerm,
    StartTerm,
    StepState,
    Term,
    at,
    entropy,
    other_log_prob,
    target_log_prob,
    times,
)

__all__ = [
    "ClassifierTerm",
    "NetworkTerm",
    "Networks",
    "Ramp",
    "ScoreTerm",
    "StartTerm",
    "StepState",
    "Term",
    "at",
    "entropy",
    "other_log_prob",
    "target_log_prob",
    "times",
]
