"""Compares the run's images, and held-out real images as the baseline, with the reference in feature space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.inputs.dataset import Problem, RunData
from rarefy.audit.inputs.reference import Reference
from rarefy.audit.inputs.training import TrainingSet
from rarefy.audit.memory import Memory, measure_memory
from rarefy.audit.metrics.assembly import GENERATED, SUBSETS, SetEstimates, estimate_rounds, set_estimates
from rarefy.audit.metrics.baseline import FEWEST_DRAWS
from rarefy.audit.metrics.bootstrap import Estimate, estimate_mean
from rarefy.audit.metrics.cmmd import cmmd, kernel_set
from rarefy.audit.metrics.copies import Twin, Twins
from rarefy.audit.metrics.distances import inception_scores
from rarefy.audit.metrics.draws import draw_values
from rarefy.audit.metrics.extrapolation import fd_infinity
from rarefy.audit.metrics.spread import BOTH, infinity_estimate
from rarefy.audit.metrics.tail import Tail, find_tail
from rarefy.audit.metrics.vendi import measure_diversity
from rarefy.audit.sides import Progress, Setting, Side, Sides, load_sides
from rarefy.audit.utility.measure import Answer
from rarefy.audit.utility.question import answer_utility
from rarefy.images import LabelledImages


@dataclass(frozen=True)
class Measured:
    """All comparisons, with everything that the tables and the page show.

    run: reduced to the measured images; sides: what was compared; of_run, of_draws: the metrics of the generated
    images and of each of the baseline's draws; utility: None if it cannot be measured; problems: classes that cannot be
    measured.
    """

    run: RunData
    real_images: LabelledImages
    held_out: LabelledImages
    sides: Sides
    of_run: SetEstimates
    of_draws: tuple[SetEstimates, ...]
    tail: Tail
    memory: Memory
    utility: Answer | None
    problems: tuple[Problem, ...]

    @property
    def baseline_images(self) -> LabelledImages:
        """The held-out images of the baseline's first draw, which the page shows."""
        return self.held_out.take(self.sides.draw_rows[0])

    @property
    def of_baseline(self) -> SetEstimates:
        """The metrics of the baseline's first draw."""
        return self.of_draws[0]

    @property
    def twins(self) -> Twins:
        """The copies and duplicates among the generated images."""
        return self.memory.twins

    def other_key(self, twin: Twin) -> str:
        """Key of the twin in the set, or of the real image."""
        source = self.memory.sources.get(twin.kind)
        return str(self.run.measured.key[twin.other]) if source is None else source.keys[twin.other]

    def other_image(self, twin: Twin) -> NDArray[np.uint8]:
        """The image of the twin in the set, or the real image."""
        source = self.memory.sources.get(twin.kind)
        return np.asarray((self.run.images if source is None else source.images)[twin.other])


@dataclass(frozen=True)
class Compared:
    """The run and the baseline's draws compared with the reference in the features of one extractor, the setting's."""

    setting: Setting
    sides: Sides
    tail: Tail
    of_run: SetEstimates
    of_draws: tuple[SetEstimates, ...]


def measure(
    run: RunData,
    reference: Reference,
    training: TrainingSet | None,
    confidence: NDArray[np.float64] | None,
    setting: Setting,
    progress: Progress,
) -> Measured:
    """Measure a run against the reference, search it for copies of the training images, and train on it.

    confidence: the classifier's confidence for the real images, needed for a tail by confidence.
    Raises DataError, ManifestError.
    """
    compared = compare(run, reference, confidence, setting, progress)
    sides, tail = compared.sides, compared.tail
    return Measured(
        run=run.keep(sides.rows),
        real_images=reference.real,
        held_out=reference.held_out,
        sides=sides,
        of_run=compared.of_run,
        of_draws=compared.of_draws,
        tail=tail,
        memory=measure_memory(sides, reference, training, setting, progress),
        utility=answer_utility(run, sides, tail, training, setting, progress),
        problems=_class_problems(run, reference),
    )


def compare(
    run: RunData, reference: Reference, confidence: NDArray[np.float64] | None, setting: Setting, progress: Progress
) -> Compared:
    """The metrics of ``measure`` that need the setting's features alone."""
    sides = load_sides(run, reference, setting, progress)
    tail = find_tail(setting.tail, sides.real.labelled, confidence, reference.real.keys, reference.other_keys)
    rounds = estimate_rounds(len(sides.generated), len(sides.real))
    few = len(sides.draws) < FEWEST_DRAWS
    tick = _Counter(progress, "comparing", rounds + len(sides.draws) + (rounds if few else 0))
    of_run = set_estimates(sides.generated.labelled, sides.real.labelled, tail, setting.device, tick)
    of_run = _with_further(of_run, sides.generated, sides)
    of_draws = list[SetEstimates]()
    for draw, of_draw in zip(sides.draws, _compare_draws(sides, tail, setting, tick), strict=True):
        tick()
        of_draws.append(_with_further(of_draw, draw, sides))
    tick.end()
    return Compared(setting, sides, tail, of_run, tuple(of_draws))


class _Counter:
    """Tells ``progress`` how far a stage of ``total`` parts is: each call begins the next part."""

    def __init__(self, progress: Progress, stage: str, total: int) -> None:
        self._progress, self._stage, self._total, self._begun = progress, stage, total, 0
        progress(stage, 0, total)

    def __call__(self) -> None:
        self._progress(self._stage, self._begun, self._total)
        self._begun += 1

    def end(self) -> None:
        """Everything is done, even if there were fewer parts."""
        self._progress(self._stage, self._total, self._total)


def _compare_draws(sides: Sides, tail: Tail, setting: Setting, tick: Callable[[], None]) -> Iterator[SetEstimates]:
    """The metrics of the features of each draw. The first one has intervals if there are few."""
    real, draws = sides.real, list(sides.draws)
    if len(draws) < FEWEST_DRAWS:
        yield set_estimates(draws.pop(0).labelled, real.labelled, tail, setting.device, tick)
    yield from draw_values([draw.manifold for draw in draws], real.manifold, tail.members, setting.device)


def _with_further(compared: SetEstimates, side: Side, sides: Sides) -> SetEstimates:
    diversity = measure_diversity(side.manifold.features, side.labels, GENERATED)
    further = _further(side, sides, compared.estimates["fid"].replicates is not None)
    estimates = compared.estimates | {"vendi": diversity.mean} | further
    return replace(compared, estimates=estimates, class_vendi=diversity.classes)


def _further(side: Side, sides: Sides, with_spread: bool) -> dict[str, Estimate]:
    """Metrics that need more than neighbours, by kind. with_spread: also of what takes long."""
    features = side.manifold.features
    estimates = {"cmmd": cmmd(kernel_set(features, side.labels), sides.real_kernel, BOTH)}
    if sides.real_gaussians:
        value, real = fd_infinity(features, sides.real_gaussians), sides.real
        both = (features, real.manifold.features), (side.labels, real.labels)
        estimates["fd_infinity"] = infinity_estimate(value, *both) if with_spread else Estimate(value, None, BOTH)
    if side.logits.shape[1]:
        estimates["inception_score"] = estimate_mean(inception_scores(side.logits), SUBSETS)
    return estimates


def _class_problems(run: RunData, reference: Reference) -> tuple[Problem, ...]:
    """Planned classes without an image, or with too few reference images."""
    made, preset = set(np.unique(run.rows.class_id).tolist()), run.manifest.preset
    halves = [set(np.unique(part.labels).tolist()) for part in (reference.real, reference.held_out)]
    problems = []
    for class_id in run.manifest.counts:
        if class_id not in made:
            problems.append(Problem(preset.class_name(class_id), "the run has no image of this class"))
        if not all(class_id in half for half in halves):
            problems.append(Problem(preset.class_name(class_id), "the reference has fewer than two images of it"))
    return tuple(problems)
