"""Both comparisons in feature space: the run's images and held-out real ones, each against the same real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extraction import outputs_of_parts
from rarefy.audit.features.extractors import Extractor, kept_outputs, resolve_device
from rarefy.audit.features.fidelity import Features, inception_scores
from rarefy.audit.inputs.dataset import Problem, RunData
from rarefy.audit.inputs.reference import Reference, rows_within, take
from rarefy.audit.metrics.bootstrap import Estimate, estimate_mean
from rarefy.audit.metrics.comparison import GENERATED, SUBSETS, Comparison, compare_manifolds
from rarefy.audit.metrics.copies import (
    HELD_OUT,
    OF_REAL,
    REFERENCE,
    Twin,
    Twins,
    find_copies,
    find_duplicates,
    listed,
    repeated,
)
from rarefy.audit.metrics.neighbors import Bools, Crossing, Manifold, build_manifold
from rarefy.audit.metrics.tail import Tail, find_tail
from rarefy.errors import DataError, bad
from rarefy.images import LabelledImages

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setting:
    """How to measure. tail: see ``find_tail``; ray_address: a cluster for the features, None for this process."""

    extractor: Extractor
    k: int
    batch: int
    device: str
    tail: str
    ray_address: str | None


@dataclass(frozen=True)
class Measured:
    """Both comparisons, and everything that the tables and the page show of them.

    run: with the measured images alone; floor_images: those of the held-out images that the floor is made of;
    generated, real: features with their neighbours; estimates, floor_estimates: all metrics by kind; problems: classes
    that cannot be measured.
    """

    run: RunData
    extractor: Extractor
    real_images: LabelledImages
    held_out: LabelledImages
    floor_images: LabelledImages
    generated: Manifold
    real: Manifold
    found: Comparison
    floor: Comparison
    tail: Tail
    twins: Twins
    estimates: Mapping[str, Estimate]
    floor_estimates: Mapping[str, Estimate]
    problems: tuple[Problem, ...]

    def other_name(self, twin: Twin) -> str:
        """Key of the twin in the set, or of the real image."""
        if twin.kind not in OF_REAL:
            return str(self.run.measured.key[twin.other])
        return self._side(twin).keys[twin.other]

    def other_image(self, twin: Twin) -> NDArray[np.uint8]:
        """The twin's image, of whichever side it is."""
        images = self._side(twin).images if twin.kind in OF_REAL else self.run.images
        return np.asarray(images[twin.other])

    def _side(self, twin: Twin) -> LabelledImages:
        return self.held_out if twin.kind == HELD_OUT else self.real_images


@dataclass(frozen=True)
class _Side:
    """Features with their neighbours, the logits beside them (N, 0 or more), and the images they are of."""

    manifold: Manifold
    logits: Features
    images: NDArray[np.uint8]

    def part(self, rows: NDArray[np.int64], setting: Setting) -> _Side:
        """These rows with the neighbours that they have among themselves."""
        outputs = np.concatenate([self.manifold.features[rows], self.logits[rows]], axis=1)
        return _side(outputs, self.images[rows], setting)


def measure(
    run: RunData,
    reference: Reference,
    confidence: NDArray[np.float64] | None,
    setting: Setting,
    progress: Progress,
) -> Measured:
    """Measure a run against the reference.

    Of each class at most as many images are measured as the floor has, so that every number and its floor are of equal
    counts. confidence: the classifier's on the real images, for the tail. Raises DataError, ManifestError.
    """
    class_ids, outputs = run.measured.class_id, _run_outputs(run, setting, progress)
    available = {class_id: int((reference.held_out.labels == class_id).sum()) for class_id in np.unique(class_ids)}
    rows = rows_within(class_ids, available)
    if len(rows) <= setting.k:
        allowed = f"more than k = {setting.k} images of classes that the reference can hold out as many of"
        raise DataError(bad("images measured", len(rows), allowed))
    problems = _class_problems(run, reference)
    run = run.keep(rows)
    counts = {int(class_id): int((run.measured.class_id == class_id).sum()) for class_id in np.unique(class_ids)}
    floor_rows = rows_within(reference.held_out.labels, counts)
    generated = _side(outputs[rows], run.images, setting)
    real = _real_side("features of the reference", reference.real, setting, progress)
    held_out = _real_side("features of the held-out images", reference.held_out, setting, progress)
    floor = held_out.part(floor_rows, setting)
    tail = find_tail(setting.tail, real.manifold, confidence, reference)
    device = str(resolve_device(setting.device))
    progress("comparing", 0, 2)
    found = compare_manifolds(generated.manifold, real.manifold, tail.members, device)
    progress("comparing", 1, 2)
    floor_found = compare_manifolds(floor.manifold, real.manifold, tail.members, device)
    twins = _twins(generated, (found, real), _copies_of_held_out(generated, held_out, device))
    floor_twins = _twins(floor, (floor_found, real), (repeated(held_out.manifold)[floor_rows], []))
    return Measured(
        run=run,
        extractor=setting.extractor,
        real_images=reference.real,
        held_out=reference.held_out,
        floor_images=take(reference.held_out, floor_rows),
        generated=generated.manifold,
        real=real.manifold,
        found=found,
        floor=floor_found,
        tail=tail,
        twins=twins,
        estimates=_estimates(found, twins, generated),
        floor_estimates=_estimates(floor_found, floor_twins, floor),
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
    wrong = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    if len(wrong):
        key = run.measured.key[wrong[0]]
        raise DataError(bad(f"features of {key}", f"not finite ({len(wrong)} images)", "finite numbers"))
    return outputs


def _class_problems(run: RunData, reference: Reference) -> tuple[Problem, ...]:
    """Classes of the plan without an image, or that the reference cannot be asked about."""
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
    manifold = build_manifold(features, setting.k, str(resolve_device(setting.device)))
    return _Side(manifold, outputs[:, setting.extractor.dim :], images)


def _real_side(stage: str, images: LabelledImages, setting: Setting, progress: Progress) -> _Side:
    outputs = kept_outputs(
        images.images,
        setting.extractor,
        setting.device,
        setting.batch,
        lambda done, total: progress(stage, done, total),
    )
    return _side(outputs, images.images, setting)


def _copies_of_held_out(side: _Side, held_out: _Side, device: str) -> tuple[Bools, list[Twin]]:
    """The held-out images are asked too: of the embedded ones, the model was trained on them."""
    crossing = Crossing(held_out.manifold, device)
    crossing.add(side.manifold.features)
    return find_copies(crossing.result(), held_out.manifold, HELD_OUT)


def _twins(side: _Side, against: tuple[Comparison, _Side], of_held_out: tuple[Bools, list[Twin]]) -> Twins:
    """Copies of the real images or of held-out ones, and twins within the side."""
    found, real = against
    copied, copies = find_copies(found.neighborhood, real.manifold, REFERENCE)
    doubled, doubles = find_duplicates(side.images, side.manifold, found.neighborhood, real.manifold)
    groups = [[twin for twin in doubles if twin.kind == kind] for kind in ("exact", "near")]
    return Twins(copied | of_held_out[0], doubled, listed([copies, *groups, of_held_out[1]]))


def _estimates(found: Comparison, twins: Twins, side: _Side) -> dict[str, Estimate]:
    estimates = dict(found.estimates)
    if side.logits.shape[1]:
        estimates["inception_score"] = estimate_mean(inception_scores(side.logits), SUBSETS)
    estimates["duplicates"] = estimate_mean(twins.doubled, GENERATED)
    estimates["copies"] = estimate_mean(twins.copied, GENERATED)
    return estimates
