"""Compares the run's images, and held-out real images as the baseline, with the reference in feature space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extraction import outputs_of_parts
from rarefy.audit.features.extractors import Extractor, Features, check_finite, kept_outputs
from rarefy.audit.inputs.dataset import Problem, RunData
from rarefy.audit.inputs.reference import Reference, rows_within
from rarefy.audit.metrics import copies
from rarefy.audit.metrics.assembly import GENERATED, SUBSETS, SetEstimates, set_estimates
from rarefy.audit.metrics.bootstrap import estimate_mean
from rarefy.audit.metrics.copies import Twin, Twins
from rarefy.audit.metrics.distances import inception_scores
from rarefy.audit.metrics.neighbors import Bools, Manifold, Neighborhood, build_manifold, find_neighbors
from rarefy.audit.metrics.tail import Tail, find_tail
from rarefy.errors import DataError
from rarefy.images import LabelledImages

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setting:
    """How to measure. tail: see ``find_tail``; ray_address: a cluster for the features, None for this process.

    started: when the audit began, by time.monotonic().
    """

    extractor: Extractor
    k: int
    device: str
    tail: str
    ray_address: str | None
    started: float


@dataclass(frozen=True)
class Measured:
    """Both comparisons, with everything that the tables and the page show.

    run: reduced to the measured images; baseline_images: the held-out images of the real baseline; generated, real:
    features with their neighbours; problems: classes that cannot be measured.
    """

    run: RunData
    real_images: LabelledImages
    held_out: LabelledImages
    baseline_images: LabelledImages
    generated: Manifold
    real: Manifold
    of_run: SetEstimates
    of_baseline: SetEstimates
    tail: Tail
    twins: Twins
    problems: tuple[Problem, ...]

    def other_key(self, twin: Twin) -> str:
        """Key of the twin in the set, or of the real image."""
        if twin.kind in copies.OF_REAL:
            return self._real_side(twin).keys[twin.other]
        return str(self.run.measured.key[twin.other])

    def other_image(self, twin: Twin) -> NDArray[np.uint8]:
        """The image of the twin in the set, or the real image."""
        images = self._real_side(twin).images if twin.kind in copies.OF_REAL else self.run.images
        return np.asarray(images[twin.other])

    def _real_side(self, twin: Twin) -> LabelledImages:
        return self.held_out if twin.kind == copies.HELD_OUT else self.real_images


@dataclass(frozen=True)
class _Side:
    """Images, their features with neighbours, and their logits (N, 0 or more)."""

    manifold: Manifold
    logits: Features
    images: NDArray[np.uint8]

    def part(self, rows: NDArray[np.int64], setting: Setting) -> _Side:
        """These rows; neighbours are searched among them only."""
        outputs = np.concatenate([self.manifold.features[rows], self.logits[rows]], axis=1)
        return _side(outputs, self.images[rows], setting)


def measure(
    run: RunData, reference: Reference, confidence: NDArray[np.float64] | None, setting: Setting, progress: Progress
) -> Measured:
    """Measure a run against the reference.

    The number of images per class is limited to the held-out ones, so that each metric and its real baseline use equal
    counts. confidence: the classifier's confidence for the real images, needed for a tail by confidence.
    Raises DataError, ManifestError.
    """
    outputs, device = _run_outputs(run, setting, progress), setting.device
    rows, baseline_rows = _equal_rows(run, reference, setting.k)
    problems = _class_problems(run, reference)
    run = run.keep(rows)
    generated = _side(outputs[rows], run.images, setting)
    real = _real_side("features of the reference", reference.real, setting, progress)
    held_out = _real_side("features of the held-out images", reference.held_out, setting, progress)
    baseline = held_out.part(baseline_rows, setting)
    tail = find_tail(setting.tail, real.manifold, confidence, reference.real.keys, reference.held_out.keys)
    progress("comparing", 0, 2)
    of_run = set_estimates(generated.manifold, real.manifold, tail.members, device)
    progress("comparing", 1, 2)
    of_baseline = set_estimates(baseline.manifold, real.manifold, tail.members, device)
    # Held-out images are checked for copies too: those of the embedded models are training images.
    among_held_out = find_neighbors(generated.manifold, held_out.manifold, device)
    of_held_out = copies.find_copies(among_held_out, held_out.manifold, copies.HELD_OUT)
    twins = _twins(generated, of_run.neighborhood, real.manifold, of_held_out)
    repeated = copies.repeated(held_out.manifold)[baseline_rows]
    baseline_twins = _twins(baseline, of_baseline.neighborhood, real.manifold, (repeated, []))
    return Measured(
        run=run,
        real_images=reference.real,
        held_out=reference.held_out,
        baseline_images=reference.held_out.take(baseline_rows),
        generated=generated.manifold,
        real=real.manifold,
        of_run=_with_twins(of_run, twins, generated),
        of_baseline=_with_twins(of_baseline, baseline_twins, baseline),
        tail=tail,
        twins=twins,
        problems=problems,
    )


def _run_outputs(run: RunData, setting: Setting, progress: Progress) -> Features:
    outputs = outputs_of_parts(
        [run.images[part] for part in run.parts],
        setting.extractor,
        setting.device,
        setting.ray_address,
        lambda done, total: progress("features of the run", done, total),
    )
    check_finite("features", outputs, run.measured.key.tolist())
    return outputs


def _equal_rows(run: RunData, reference: Reference, k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the run and of the held-out images with the same number of images per class."""
    class_ids, held_out = run.measured.class_id, reference.held_out.labels
    rows = rows_within(class_ids, {each: int((held_out == each).sum()) for each in np.unique(class_ids)})
    check_enough(len(rows), k)
    counts = {int(each): int((class_ids[rows] == each).sum()) for each in np.unique(class_ids)}
    return rows, rows_within(held_out, counts)


def check_enough(images: int, k: int) -> None:
    """Raise DataError unless so many images, for each of which there is a held-out real one, can be compared."""
    if images <= k:
        raise DataError(
            f"reference: it has real images for the comparison of only {images}, and the metrics need more than "
            f"k = {k}; give more real images of the run's classes with --reference"
        )


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


def _side(outputs: Features, images: NDArray[np.uint8], setting: Setting) -> _Side:
    features = np.ascontiguousarray(outputs[:, : setting.extractor.dim])
    manifold = build_manifold(features, setting.k, setting.device)
    return _Side(manifold, outputs[:, setting.extractor.dim :], images)


def _real_side(stage: str, images: LabelledImages, setting: Setting, progress: Progress) -> _Side:
    outputs = kept_outputs(
        images.images,
        setting.extractor,
        setting.device,
        lambda done, total: progress(stage, done, total),
    )
    check_finite("features", outputs, images.keys)
    return _side(outputs, images.images, setting)


def _twins(side: _Side, neighborhood: Neighborhood, real: Manifold, of_held_out: tuple[Bools, list[Twin]]) -> Twins:
    """Copies of reference or held-out images, and duplicates within the side."""
    copied, of_reference = copies.find_copies(neighborhood, real, copies.REFERENCE)
    doubled, doubles = copies.find_duplicates(side.images, side.manifold, neighborhood, real)
    groups = [[twin for twin in doubles if twin.kind == kind] for kind in ("exact", "near")]
    return Twins(copied | of_held_out[0], doubled, copies.listed([of_reference, *groups, of_held_out[1]]))


def _with_twins(metrics: SetEstimates, twins: Twins, side: _Side) -> SetEstimates:
    """Add the metrics that need images or logits: duplicates, copies and the Inception Score."""
    estimates = dict(metrics.estimates)
    if side.logits.shape[1]:
        estimates["inception_score"] = estimate_mean(inception_scores(side.logits), SUBSETS)
    estimates["duplicates"] = estimate_mean(twins.doubled, GENERATED)
    estimates["copies"] = estimate_mean(twins.copied, GENERATED)
    return replace(metrics, estimates=estimates)
