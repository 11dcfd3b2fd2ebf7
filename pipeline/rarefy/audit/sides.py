"""The sets of images that an audit compares: generated, real, held-out, and the baseline's draws from the held-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extraction import outputs_of_parts
from rarefy.audit.features.extractors import Extractor, Features, check_finite, kept_outputs
from rarefy.audit.inputs.dataset import RunData
from rarefy.audit.inputs.reference import Reference, disjoint_rows, rows_within
from rarefy.audit.metrics.cmmd import KernelSet, kernel_set
from rarefy.audit.metrics.extrapolation import Gaussian, enough_rows, real_gaussians
from rarefy.audit.metrics.neighbors import Labelled, Manifold, build_manifold
from rarefy.errors import DataError
from rarefy.images import LabelledImages

MAX_DRAWS = 10

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setting:
    """How to measure. tail: see ``find_tail``; ray_address: a cluster for the features, None for this process.

    started: when the audit began, by time.monotonic(); network: also train a small network to measure utility.
    """

    extractor: Extractor
    k: int
    device: str
    tail: str
    ray_address: str | None
    started: float
    network: bool = False


@dataclass(frozen=True)
class Side:
    """One set of N images.

    images: uint8 (N, C, H, W); labels (N,): the requested or the true class; manifold: features (N, D) with their
    neighbours in this set; logits (N, 0 or more): the extractor's.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    manifold: Manifold
    logits: Features

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> Labelled:
        """The manifold with the classes."""
        return Labelled(self.manifold, self.labels)

    def take(self, rows: NDArray[np.int64], setting: Setting) -> Side:
        """These rows; neighbours are searched among them only."""
        outputs = np.concatenate([self.manifold.features[rows], self.logits[rows]], axis=1)
        return make_side(outputs, self.images[rows], self.labels[rows], setting)


@dataclass(frozen=True)
class Sides:
    """What is compared. draws: disjoint sets of held-out images, each with as many images per class as ``generated``.

    rows: those of the run that ``generated`` consists of; draw_rows: those of ``held_out`` in each draw; run_features
    (N, D): of all images of the run that the audit reads.
    """

    generated: Side
    real: Side
    held_out: Side
    draws: tuple[Side, ...]
    rows: NDArray[np.int64]
    draw_rows: tuple[NDArray[np.int64], ...]
    run_features: Features

    @cached_property
    def real_kernel(self) -> KernelSet:
        """What CMMD needs of the reference."""
        return kernel_set(self.real.manifold.features, self.real.labels, keep=True)

    @cached_property
    def real_gaussians(self) -> tuple[Gaussian, ...]:
        """What FD infinity needs of the reference; empty if either side has too few images for it."""
        real, dim = self.real.manifold.features, self.real.manifold.features.shape[1]
        return real_gaussians(real) if enough_rows(min(len(real), len(self.generated)), dim) else ()


def load_sides(run: RunData, reference: Reference, setting: Setting, progress: Progress) -> Sides:
    """Compute all features and the neighbours within each set.

    The number of images per class is limited to the held-out ones, so that each metric and its real baseline use equal
    counts. Raises DataError for too few images and for features that are not finite.
    """
    outputs = _run_outputs(run, setting, progress)
    rows, draw_rows = equal_rows(run.measured.class_id, reference, setting.k)
    generated = make_side(outputs[rows], run.images[rows], run.measured.class_id[rows], setting)
    real = _real_side("features of the reference", reference.real, setting, progress)
    held_out = _real_side("features of the held-out images", reference.held_out, setting, progress)
    draws = tuple(held_out.take(each, setting) for each in draw_rows)
    return Sides(generated, real, held_out, draws, rows, draw_rows, outputs[:, : setting.extractor.dim])


def make_side(outputs: Features, images: NDArray[np.uint8], labels: NDArray[np.int64], setting: Setting) -> Side:
    """outputs (N, D + logits): the extractor's."""
    features = np.ascontiguousarray(outputs[:, : setting.extractor.dim])
    manifold = build_manifold(features, setting.k, setting.device)
    return Side(images, labels, manifold, outputs[:, setting.extractor.dim :])


def check_enough(images: int, k: int) -> None:
    """Raise DataError unless so many images, for each of which there is a held-out real one, can be compared."""
    if images <= k:
        raise DataError(
            f"reference: it has real images for the comparison of only {images}, and the metrics need more than "
            f"k = {k}; give more real images of the run's classes with --reference"
        )


def equal_rows(
    class_ids: NDArray[np.int64], reference: Reference, k: int
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], ...]]:
    """Rows of the run (with class_ids), and of the held-out images in up to ten draws: equally many per class."""
    held_out = reference.held_out.labels
    rows = rows_within(class_ids, {each: int((held_out == each).sum()) for each in np.unique(class_ids)})
    check_enough(len(rows), k)
    counts = {int(each): int((class_ids[rows] == each).sum()) for each in np.unique(class_ids[rows])}
    return rows, disjoint_rows(held_out, counts, MAX_DRAWS)


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


def _real_side(stage: str, images: LabelledImages, setting: Setting, progress: Progress) -> Side:
    outputs = kept_outputs(
        images.images,
        setting.extractor,
        setting.device,
        lambda done, total: progress(stage, done, total),
    )
    check_finite("features", outputs, images.keys)
    return make_side(outputs, images.images, images.labels, setting)
