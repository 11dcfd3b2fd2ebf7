"""The real images that a data set is held against: one part as the reference, another as the floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.reference_check import check_reference
from pipeline.errors import DataError, bad
from pipeline.models.catalog import Preset
from pipeline.training.data import LabelledImages, load_images

SEED = 0


@dataclass(frozen=True)
class Reference:
    """real: what the metrics compare with; held_out: other real images, for the floor; source: where they are from.

    places (M,): where each of ``real`` stands in the source, counted from 0; resized: images that the source holds in
    another size.
    """

    real: LabelledImages
    held_out: LabelledImages
    source: str
    places: NDArray[np.int64]
    resized: int = 0


def load_reference(preset: Preset, folder: str | None) -> Reference | None:
    """The user's folder of real images, else the preset's embedded ones, else None.

    A folder (class folders, WebDataset shards, IDX files) is split at random, class by class, into halves.
    Raises DataError.
    """
    if folder is not None:
        resized = check_reference(folder, preset.image_size, preset.channels)
        images = load_images(folder, preset.image_size, preset.channels)
        real, held_out = _halves(images.labels)
        source = f"{folder} (random halves of each class)"
        return Reference(_take(images, real), _take(images, held_out), source, real, resized)
    if not preset.embedded:
        return None
    from pipeline.assets import reference

    test = reference(preset.name, "test")
    return Reference(test, reference(preset.name, "train"), "embedded test images", np.arange(len(test)))


def match_counts(images: LabelledImages, counts: Mapping[int, int]) -> LabelledImages:
    """Random images with the given number of each class, or as many as there are: a floor with the set's own mix."""
    generator = np.random.default_rng(SEED)
    order = generator.permutation(len(images))
    labels = images.labels[order]
    chosen = [order[labels == class_id][:count] for class_id, count in sorted(counts.items())]
    return _take(images, np.concatenate(chosen) if chosen else np.empty(0, np.int64))


def rows_within(class_ids: NDArray[np.int64], available: Mapping[int, int]) -> NDArray[np.int64]:
    """Ascending rows of at most the available number of each class, random: so many the floor can match."""
    order = np.random.default_rng(SEED).permutation(len(class_ids))
    chosen = [order[class_ids[order] == class_id][:count] for class_id, count in sorted(available.items())]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def _halves(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.random.default_rng(SEED).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for class_id in np.unique(labels):
        members = order[labels[order] == class_id]
        rank[members] = np.arange(len(members))
    even = rank % 2 == 0
    if even.all():
        raise DataError(bad("reference", f"{len(labels)} images", "a folder with at least two images of a class"))
    return np.flatnonzero(even), np.flatnonzero(~even)


def _take(images: LabelledImages, rows: NDArray[np.int64]) -> LabelledImages:
    return LabelledImages(images.images[rows], images.labels[rows], images.class_names)
