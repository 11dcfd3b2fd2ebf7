"""The real images that a data set is held against: one part as the reference, another as the floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, bad
from pipeline.models.catalog import Preset
from pipeline.training.data import LabelledImages, load_images

SEED = 0


@dataclass(frozen=True)
class Reference:
    """real: what the metrics compare with; held_out: other real images, for the floor; source: where they are from."""

    real: LabelledImages
    held_out: LabelledImages
    source: str


def load_reference(preset: Preset, folder: str | None) -> Reference | None:
    """The user's folder of real images, else the preset's embedded ones, else None.

    A folder (class folders, WebDataset shards, IDX files) is split at random, class by class, into halves.
    Raises DataError.
    """
    if folder is not None:
        images = load_images(folder, preset.image_size, preset.channels)
        real, held_out = _halves(images.labels)
        return Reference(_take(images, real), _take(images, held_out), f"{folder} (random halves of each class)")
    if preset.assets is None:
        return None
    from pipeline.assets import reference

    return Reference(
        reference(preset.assets.folder, "test"), reference(preset.assets.folder, "train"), "embedded test images"
    )


def match_counts(images: LabelledImages, counts: Mapping[int, int]) -> LabelledImages:
    """Random images with the given number of each class, or as many as there are: a floor with the set's own mix."""
    generator = np.random.default_rng(SEED)
    order = generator.permutation(len(images))
    labels = images.labels[order]
    chosen = [order[labels == class_id][:count] for class_id, count in sorted(counts.items())]
    return _take(images, np.concatenate(chosen) if chosen else np.empty(0, np.int64))


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
