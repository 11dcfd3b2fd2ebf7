"""Compares the run's images, and held-out real images as the baseline, with the reference in feature space."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.inputs.dataset import Problem, RunData
from rarefy.audit.inputs.reference import Reference
from rarefy.audit.inputs.training import TrainingSet
from rarefy.audit.memory import Memory, measure_memory
from rarefy.audit.metrics.assembly import SUBSETS, SetEstimates, set_estimates, set_values
from rarefy.audit.metrics.baseline import FEWEST_DRAWS
from rarefy.audit.metrics.bootstrap import Estimate, estimate_mean
from rarefy.audit.metrics.copies import Twin, Twins
from rarefy.audit.metrics.distances import inception_scores
from rarefy.audit.metrics.tail import Tail, find_tail
from rarefy.audit.sides import Progress, Setting, Side, Sides, load_sides
from rarefy.images import LabelledImages


@dataclass(frozen=True)
class Measured:
    """All comparisons, with everything that the tables and the page show.

    run: reduced to the measured images; sides: what was compared; of_run, of_draws: the metrics of the generated
    images and of each of the baseline's draws; problems: classes that cannot be measured.
    """

    run: RunData
    real_images: LabelledImages
    held_out: LabelledImages
    sides: Sides
    of_run: SetEstimates
    of_draws: tuple[SetEstimates, ...]
    tail: Tail
    memory: Memory
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


def measure(
    run: RunData,
    reference: Reference,
    training: TrainingSet | None,
    confidence: NDArray[np.float64] | None,
    setting: Setting,
    progress: Progress,
) -> Measured:
    """Measure a run against the reference, and search it for copies of the training images.

    confidence: the classifier's confidence for the real images, needed for a tail by confidence.
    Raises DataError, ManifestError.
    """
    sides = load_sides(run, reference, setting, progress)
    tail = find_tail(setting.tail, sides.real.labelled, confidence, reference.real.keys, reference.other_keys)
    total = 1 + len(sides.draws)
    progress("comparing", 0, total)
    of_run = _compare(sides.generated, sides, tail, setting)
    of_draws = []
    for number, draw in enumerate(sides.draws):
        progress("comparing", 1 + number, total)
        spread = number == 0 and len(sides.draws) < FEWEST_DRAWS
        of_draws.append(_compare(draw, sides, tail, setting, spread))
    return Measured(
        run=run.keep(sides.rows),
        real_images=reference.real,
        held_out=reference.held_out,
        sides=sides,
        of_run=of_run,
        of_draws=tuple(of_draws),
        tail=tail,
        memory=measure_memory(sides, reference, training, setting, progress),
        problems=_class_problems(run, reference),
    )


def _compare(side: Side, sides: Sides, tail: Tail, setting: Setting, spread: bool = True) -> SetEstimates:
    """Every metric of the generated images or of a draw, except the copies. spread: with intervals."""
    if spread:
        compared = set_estimates(side.labelled, sides.real.labelled, tail, setting.device)
    else:
        compared = set_values(side.manifold, sides.real.manifold, tail.members, setting.device)
    return _with(compared, _further(side, sides, setting))


def _further(side: Side, sides: Sides, setting: Setting) -> dict[str, Estimate]:
    """Metrics that need more than the features, by kind: each is one line here."""
    estimates = {}
    if side.logits.shape[1]:
        estimates["inception_score"] = estimate_mean(inception_scores(side.logits), SUBSETS)
    return estimates


def _with(metrics: SetEstimates, further: dict[str, Estimate]) -> SetEstimates:
    return replace(metrics, estimates=metrics.estimates | further)


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
