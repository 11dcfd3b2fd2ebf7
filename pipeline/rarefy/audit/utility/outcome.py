"""Accuracies of trained classifiers on the test images, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from rarefy.audit.metrics.bootstrap import UPPER
from rarefy.audit.metrics.neighbors import Bools
from rarefy.audit.schema import Training
from rarefy.audit.utility.trainings import Mix

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A value with a standard error of ``degrees`` degrees of freedom."""

    value: float
    error: float
    degrees: int

    @property
    def interval(self) -> list[float]:
        """95%, by Student's t."""
        width = float(student.ppf(UPPER, self.degrees)) * self.error
        return [self.value - width, self.value + width]


@dataclass(frozen=True)
class Outcome:
    """What training on a mix led to. hits (M,): fraction of its classifiers that are right, per test image.

    by_seed (S, M): whether each seed's classifier is right. halves: each seed trained on another random half of the
    mix, and ``hits`` is of a classifier trained on all of it: the spread of the halves estimates that of new draws of
    all training images (Shao and Wu 1989). Otherwise ``hits`` is the mean over the seeds.
    """

    mix: Mix
    hits: Doubles
    by_seed: Bools
    halves: bool

    def accuracy(self, members: Bools, less: Outcome | None = None) -> Spread:
        """Over the test images ``members`` (M,), minus the accuracy of another mix, seed by seed."""
        hits, seeds = self.hits[members], self.by_seed[:, members].mean(axis=1)
        if less is not None:
            hits, seeds = hits - less.hits[members], seeds - less.by_seed[:, members].mean(axis=1)
        count = len(seeds)
        scale = 1.0 if self.halves else 1 / np.sqrt(count)
        return Spread(float(hits.mean()), float(seeds.std(ddof=1) * scale), count - 1)


def training_row(outcome: Outcome, tail: Bools, labels: NDArray[np.int64], class_names: Sequence[str]) -> Training:
    """The row of metrics.json. tail (M,): test images of the tail; labels (M,): their true classes."""
    whole, of_tail = outcome.accuracy(np.ones_like(tail)), outcome.accuracy(tail)
    of_class = {class_names[i]: outcome.accuracy(labels == i) for i in np.unique(labels).tolist()}
    return Training(
        data=outcome.mix.data,
        ratio=outcome.mix.ratio,
        images=len(outcome.mix),
        accuracy=whole.value,
        accuracy_interval=whole.interval,
        tail_accuracy=of_tail.value,
        tail_accuracy_interval=of_tail.interval,
        per_class={name: found.value for name, found in of_class.items()},
        per_class_interval={name: found.interval for name, found in of_class.items()},
    )
