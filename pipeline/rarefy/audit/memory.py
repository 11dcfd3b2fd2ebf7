"""Measures what a model has memorised: copies of real images, duplicates, the authenticity share and the C_T test.

The images that are searched for copies are the model's training set, if the audit has all of it. Otherwise they are
what the audit has of it, the reference and the held-out images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.index import halved, index_features
from rarefy.audit.gallery import Gallery, ImageSet, Look, Matrix, kept_look, look, make_gallery
from rarefy.audit.inputs.reference import Reference, rows_within
from rarefy.audit.inputs.training import TrainingSet
from rarefy.audit.metrics import copies
from rarefy.audit.metrics.assembly import GENERATED
from rarefy.audit.metrics.bootstrap import Estimate, chosen_rows, estimate_mean
from rarefy.audit.metrics.copies import Closeness, Rule, Twin, Twins
from rarefy.audit.metrics.memorization import authentic, copying_test
from rarefy.audit.metrics.pixels import ImageStack, Indices, PixelSearch
from rarefy.audit.metrics.ranking import nearest_rows
from rarefy.audit.schema import Memorization
from rarefy.audit.sides import Progress, Setting, Sides
from rarefy.errors import DataError, bad
from rarefy.images import LabelledImages

UNSEEN = 2000  # real images that calibrate the rule, or as many as were generated if that is more
OWN_NEIGHBORS = 8


@dataclass(frozen=True)
class Memory:
    """What was found. sources: the searched real images by kind of ``Twin``; twins: of the generated images.

    of_run, of_baseline: duplicates, copies, authenticity and ct, of the generated images and of real ones that no
    training step saw; baseline_count: number of these; rule: what counts as a copy.
    """

    sources: dict[str, LabelledImages]
    twins: Twins
    of_run: dict[str, Estimate]
    of_baseline: dict[str, Estimate]
    baseline_count: int
    rule: Rule
    summary: Memorization


def measure_memory(
    sides: Sides, reference: Reference, training: TrainingSet | None, setting: Setting, progress: Progress
) -> Memory:
    """Search the generated images for copies and duplicates, by a rule that unseen real images calibrate.

    Raises DataError for training images whose features are not finite or that are all the same.
    """
    sources = _sources(reference, training)
    gallery = make_gallery(sources, _features(sides, training, setting, progress), setting.device)
    if gallery.trained < 2:
        raise DataError(bad("training images", "all the same picture", "at least two different ones"))
    summary = _summary(sources, reference, training, len(gallery.rows))
    generated = ImageSet(sides.generated.images, halved(sides.generated.manifold.features))
    generated_look = look(generated, gallery, setting.device, partial(progress, "searching for copies"))
    unseen, labels = _unseen(sides, reference, gallery, training is not None)
    drawn, rest = _split(labels, sides.generated.labels)
    checked = np.concatenate([drawn, rest[chosen_rows(len(rest), max(0, UNSEEN - len(drawn)))]])
    step = partial(progress, "checking real images that were not trained on")
    rule, unseen_look = copies.UNCALIBRATED, None
    if len(checked):
        unseen_look = kept_look(unseen.take(checked), gallery, summary.sha256, setting.extractor, setting.device, step)
        rule = copies.calibrate(unseen_look.closeness)
    search, others = _Search(gallery, list(sources), rule, setting.device), unseen.features[rest]
    twins, of_run = search.measure(generated, sides.generated.labels, generated_look, others)
    of_baseline = dict[str, Estimate]()
    if unseen_look is not None and len(drawn):
        own_look = unseen_look.take(np.arange(len(drawn)))
        _, of_baseline = search.measure(unseen.take(drawn), labels[drawn], own_look, others)
    return Memory(sources, twins, of_run, of_baseline, len(drawn), rule, summary)


def _sources(reference: Reference, training: TrainingSet | None) -> dict[str, LabelledImages]:
    """The images to search: the whole training set, or else all real images that the audit has."""
    known = {} if training is None else {copies.TRAINING: training.images}
    if training is not None and training.whole:
        return known
    return {**known, copies.REFERENCE: reference.real, copies.HELD_OUT: reference.held_out}


def _features(sides: Sides, training: TrainingSet | None, setting: Setting, progress: Progress) -> list[Matrix]:
    """Those of each source."""
    parts = list[Matrix]()
    if training is not None:
        step = partial(progress, "features of the training images")
        parts.append(index_features(training.images.images, setting.extractor, setting.device, step))
    if training is None or not training.whole:
        parts += [halved(side.manifold.features) for side in (sides.real, sides.held_out)]
    return parts


def _summary(
    sources: dict[str, LabelledImages], reference: Reference, training: TrainingSet | None, count: int
) -> Memorization:
    """count: of different pictures."""
    if training is not None and training.whole:
        return Memorization(training.source, count, training.sha256, whole=True)
    named = [f"the real images of the comparison ({reference.source})"]
    named = named if training is None else [training.source, *named]
    hashes = [images.sha256() for images in sources.values()]
    return Memorization(", and ".join(named), count, hashlib.sha256("".join(hashes).encode()).hexdigest(), whole=False)


def _unseen(sides: Sides, reference: Reference, gallery: Gallery, known: bool) -> tuple[ImageSet, Indices]:
    """Real images that no training step saw, of the classes that were generated, and their labels.

    known: the gallery begins with training images; those of them among the real images are left out. Otherwise the
    reference stands for the training set, and the held-out images are unseen.
    """
    halves = [(reference.held_out, sides.held_out)]
    if known:
        halves.insert(0, (reference.real, sides.real))
    labels = np.concatenate([half.labels for half, _ in halves])
    itself = np.array([gallery.place(image) for half, _ in halves for image in half.images], np.int64)
    seen = (itself >= 0) & (itself < gallery.trained)
    rows = np.flatnonzero(~seen & np.isin(labels, sides.generated.labels))
    unseen = ImageSet(
        np.concatenate([half.images for half, _ in halves]),
        halved(np.concatenate([side.manifold.features for _, side in halves])),
        itself if (itself[rows] >= 0).any() else None,
    )
    return unseen.take(rows), labels[rows]


def _split(labels: Indices, generated: Indices) -> tuple[Indices, Indices]:
    """Rows of the unseen images: the baseline, with as many per class as generated or half of them, and the others."""
    wanted = {int(each): int((generated == each).sum()) for each in np.unique(generated)}
    drawn = rows_within(labels, {each: min(count, int((labels == each).sum()) // 2) for each, count in wanted.items()})
    return drawn, np.setdiff1d(np.arange(len(labels)), drawn)


@dataclass(frozen=True)
class _Search:
    """Applies a rule to images that were looked up in a gallery. kinds: of its sources."""

    gallery: Gallery
    kinds: list[str]
    rule: Rule
    device: str

    def measure(
        self, images: ImageSet, labels: Indices, found: Look, unseen: Matrix
    ) -> tuple[Twins, dict[str, Estimate]]:
        """labels (N,): classes of the images; unseen: features of other real images that no training step saw."""
        training, twins = self.gallery.training, self._twins(images, found)
        hits, back = np.unique(found.trained_index, return_inverse=True)
        others, _ = nearest_rows(training[hits], training, 1, hits, self.device)
        estimates = {
            "duplicates": estimate_mean(twins.doubled, GENERATED, labels),
            "copies": estimate_mean(twins.copied, GENERATED, labels),
            "authenticity": estimate_mean(authentic(found.trained, others[back, 0]), GENERATED, labels),
        }
        test = copying_test(images.features, unseen, training, self.device)
        return twins, estimates | ({} if test is None else {"ct": test})

    def _twins(self, images: ImageSet, found: Look) -> Twins:
        ratio, other = self.rule.ratio(found.closeness), self.rule.other(found.closeness)
        doubled, groups = self._duplicates(images, found)
        for kind in self.kinds:
            rows = np.flatnonzero((ratio < 1) & (self.gallery.kinds[other] == kind))
            near = _closest(rows, ratio, other, images, self.gallery.search)
            groups.append([Twin(row, kind, int(self.gallery.rows[place]), apart, r) for row, place, apart, r in near])
        return Twins(ratio, ratio < 1, doubled, copies.listed(groups))

    def _duplicates(self, images: ImageSet, found: Look) -> tuple[NDArray[np.bool_], list[list[Twin]]]:
        """Which images have a twin in their own set, and the twins: of equal pixels, and as close as a copy."""
        own, search = np.arange(len(images)), PixelSearch(ImageStack.of(images.images), self.device)
        matches = search.nearest(images.images, OWN_NEIGHBORS, own)
        near, near_index = nearest_rows(images.features, images.features, 1, own, self.device)
        closeness = Closeness(
            pixel=copies.spacing_ratios(matches.distance, found.pixel_spacing),
            feature=copies.spacing_ratios(near, found.feature_spacing),
            pixel_index=matches.index[:, 0],
            feature_index=near_index[:, 0],
        )
        ratio, other, same = self.rule.ratio(closeness), self.rule.other(closeness), copies.same_pixels(images.images)
        doubled = ratio < 1
        exact = [Twin(row, "exact", twin, 0.0, 0.0) for row, twin in sorted(same.items())]
        rows = np.setdiff1d(np.flatnonzero(doubled), list(same))
        pairs = _closest(rows, ratio, other, images, search)
        doubled[list(same)] = True
        return doubled, [exact, [Twin(row, "near", twin, apart, r) for row, twin, apart, r in pairs]]


def _closest(
    rows: Indices, ratio: NDArray[np.float64], other: Indices, images: ImageSet, search: PixelSearch
) -> list[tuple[int, int, float, float]]:
    """(row, other, distance in grey levels, ratio) of these rows, closest first, as many as can be listed."""
    rows = rows[np.argsort(ratio[rows], kind="stable")][: copies.LISTED]
    distance = search.distances(images.images[rows], other[rows, None])[:, 0].tolist()
    return list(zip(rows.tolist(), other[rows].tolist(), distance, ratio[rows].tolist(), strict=True))
