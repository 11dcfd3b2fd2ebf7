"""Measures what the generated images add to real ones: classifiers trained on either or both, tested on real images.

The probe is always trained, the network on request. Intervals of the probe cover the draw of the training images: each
of eight seeds trains on a random half of them, with the penalty and the axes fixed. Those of the network cover its
initial weights and the order of the images. The metrics ``utility`` and ``tail_utility`` are the probe's gain in
accuracy when all generated images are added; their intervals cover the draw of the test images too. Their real baseline
is what equally many real images of each class add to the other real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extractors import Features
from rarefy.audit.metrics.bootstrap import REPLICATES, Estimate, estimate_mean
from rarefy.audit.metrics.neighbors import Bools
from rarefy.audit.schema import Utility
from rarefy.audit.utility.network import NETWORK_SEEDS, train_network
from rarefy.audit.utility.outcome import Outcome, training_row
from rarefy.audit.utility.probe import Probe, choose_penalty, fit_probe, fit_standardizer
from rarefy.audit.utility.trainings import BOTH, LESS_REAL, REAL, Examples, Mix, capped, plan_mixes

PROBE_SEEDS = 8
SEED = 6
OVER = "training and test images"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """What to train on and to test with. source: of the real training images; tail (M,): test images of the tail."""

    real: Examples
    generated: Examples
    test: Examples
    tail: Bools
    source: str
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """tables: for metrics.json; gains: ``utility`` and ``tail_utility``; baselines: theirs, empty if there is none.

    counts: of added generated images, of real images that they are added to, and of real images that the baseline adds.
    class_gains, class_accuracies: by class id, the accuracy gained and that with the real images alone.
    """

    tables: list[Utility]
    gains: dict[str, Estimate]
    baselines: dict[str, Estimate]
    counts: tuple[int, int, int]
    class_gains: dict[int, Estimate]
    class_accuracies: dict[int, float]


def measure_utility(question: Question, network_device: str | None, progress: Progress) -> Answer:
    """Train and test every mix. network_device: also train the network there; None: the probe alone."""
    mixes = plan_mixes(question.real.labels, question.generated.labels)
    outcomes = _probe_outcomes(question, mixes, progress)
    tables = [_table("probe", outcomes, question, PROBE_SEEDS)]
    if network_device is not None:
        shown = [mix for mix in mixes if mix.data != LESS_REAL]
        trained = _network_outcomes(question, shown, network_device, progress)
        tables.append(_table("network", trained, question, NETWORK_SEEDS))
    real = next(outcome for outcome in outcomes if outcome.mix.data == REAL)
    both = [outcome for outcome in outcomes if outcome.mix.data == BOTH][-1]
    less = [outcome for outcome in outcomes if outcome.mix.data == LESS_REAL]
    labels = question.test.labels
    of_class = {i: labels == i for i in np.unique(labels).tolist()}
    count = len(question.real)
    return Answer(
        tables,
        _gains(both, real, question),
        _gains(real, less[0], question) if less else {},
        (len(question.generated), count, count - len(less[0].mix) if less else 0),
        {i: _gain(both, real, members, labels) for i, members in of_class.items()},
        {i: real.accuracy(members).value for i, members in of_class.items()},
    )


def _gains(more: Outcome, less: Outcome, question: Question) -> dict[str, Estimate]:
    sets = {"utility": np.ones_like(question.tail), "tail_utility": question.tail}
    return {kind: _gain(more, less, members, question.test.labels) for kind, members in sets.items()}


def _gain(more: Outcome, less: Outcome, members: Bools, labels: NDArray[np.int64]) -> Estimate:
    """The gain in accuracy. Its replicates draw the test images, and add the error by the training images."""
    spread = more.accuracy(members, less)
    drawn = estimate_mean((more.hits - less.hits)[members], OVER, labels[members])
    # Two runs draw the same test images but not the same training images: the noise depends on the result.
    generator = np.random.default_rng([SEED, *more.by_seed.sum(axis=1).tolist()])
    noise = spread.error * generator.standard_normal(REPLICATES)
    base = spread.value if drawn.replicates is None else drawn.replicates
    return Estimate(spread.value, base + noise, OVER, degrees=spread.degrees)


def _probe_outcomes(question: Question, mixes: Sequence[Mix], progress: Progress) -> list[Outcome]:
    axes = fit_standardizer(question.real.features)
    real, made, test = (axes(each.features) for each in (question.real, question.generated, question.test))
    classes = len(question.class_names)
    penalty = choose_penalty(real, question.real.labels, classes)
    features, labels = np.concatenate([real, made]), np.concatenate([question.real.labels, question.generated.labels])
    halves = _random_halves(len(labels))
    outcomes, done = [], 0

    def train(rows: NDArray[np.int64], start: Probe | None) -> Probe:
        nonlocal done
        progress("training the probe", done, len(mixes) * (1 + PROBE_SEEDS))
        done += 1
        return fit_probe(features[rows], labels[rows], classes, penalty, start)

    for mix in mixes:
        rows = np.concatenate([mix.real, len(real) + mix.generated])
        whole = train(rows, None)
        parts = [train(rows[half[rows]], whole) for half in halves]
        outcomes.append(_judged(mix, [whole, *parts], test, question.test.labels))
    return outcomes


def _random_halves(rows: int) -> list[Bools]:
    """Which rows each seed trains on."""
    generator = np.random.default_rng(SEED)
    return [np.asarray(generator.permutation(rows) < (rows + 1) // 2) for _ in range(PROBE_SEEDS)]


def _judged(mix: Mix, probes: Sequence[Probe], test: Features, labels: NDArray[np.int64]) -> Outcome:
    """The first probe was trained on the whole mix, the others on a part each."""
    right = np.stack([probe.predict(test) == labels for probe in probes])
    return Outcome(mix, right[0].astype(np.float64), right[1:], halves=True)


def _network_outcomes(question: Question, mixes: Sequence[Mix], device: str, progress: Progress) -> list[Outcome]:
    outcomes, total, done = [], len(mixes) * NETWORK_SEEDS, 0
    for mix in mixes:
        images = np.concatenate([question.real.images[mix.real], question.generated.images[mix.generated]])
        labels = np.concatenate([question.real.labels[mix.real], question.generated.labels[mix.generated]])
        right = []
        for seed in range(NETWORK_SEEDS):
            progress("training the network", done, total)
            predict = train_network(images, labels, len(question.class_names), seed, device)
            right.append(predict(question.test.images) == question.test.labels)
            done += 1
        outcomes.append(Outcome(mix, np.mean(right, axis=0), np.stack(right), halves=False))
    return outcomes


def _table(classifier: str, outcomes: Sequence[Outcome], question: Question, seeds: int) -> Utility:
    test, shown = question.test.labels, [outcome for outcome in outcomes if outcome.mix.data != LESS_REAL]
    too_few = capped(len(question.real), len(question.generated))
    return Utility(
        classifier=classifier,
        source="; ".join(part for part in (question.source, too_few) if part),
        train_count=len(question.real),
        test_count=len(test),
        seeds=seeds,
        trainings=[training_row(outcome, question.tail, test, question.class_names) for outcome in shown],
    )
