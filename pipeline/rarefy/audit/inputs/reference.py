"""The real images of the audit: one part is the reference, the other is held out for the real baseline."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.inputs.reference_check import check_reference
from rarefy.errors import DataError, bad
from rarefy.images import ClassNames, LabelledImages, load_images
from rarefy.models.folder import ModelFolder

SEED = 0


@dataclass(frozen=True)
class Reference:
    """real: the images that metrics compare with; held_out: other real images, for the baseline.

    Both have keys: numbers from 0 if the source has no names. source: human-readable origin; resized: number of images
    that had to be resized; left_out: keys of images of other classes than the run's.
    """

    real: LabelledImages
    held_out: LabelledImages
    source: str
    resized: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def other_keys(self) -> tuple[str, ...]:
        """Keys of the images that metrics do not compare with."""
        return (*self.held_out.keys, *self.left_out)

    def of_classes(self, class_ids: Collection[int]) -> Reference:
        """Only the images of these classes: a run of some classes is compared with those. Raises DataError for none."""
        chosen = [np.isin(part.labels, list(class_ids)) for part in (self.real, self.held_out)]
        if all(own.all() for own in chosen):
            return self
        if not all(own.any() for own in chosen):
            raise DataError(bad("reference", self.source, "a set with at least two images of a class of the run"))
        parts = [part.take(np.flatnonzero(own)) for part, own in zip((self.real, self.held_out), chosen, strict=True)]
        left_out = {*self.real.keys, *self.held_out.keys} - {*parts[0].keys, *parts[1].keys}
        return replace(self, real=parts[0], held_out=parts[1], left_out=tuple(sorted(left_out)))


def load_reference(preset: ModelFolder, folder: str | None) -> Reference | None:
    """The user's folder of real images, else the model's own, else None. Raises DataError.

    A folder (any data set that ``load_images`` reads) is split into random halves, class by class. Its classes are
    matched with the model's by name; for a model that knows no classes, all images are of its only one.
    """
    if folder is not None:
        return _from_folder(preset, folder, folder)
    if "reference" not in preset.files:
        return None
    own = preset.file("reference")
    if own.suffix != ".npz":
        return _from_folder(preset, str(own), "held-out images of the model")
    test, train = (with_keys(read_embedded(preset, role)) for role in ("reference", "held_out"))
    return Reference(test, train, "embedded test images")


def _from_folder(preset: ModelFolder, folder: str, source: str) -> Reference:
    resized = check_reference(folder, preset.image_size, preset.channels)
    images = load_images(folder, preset.image_size, preset.channels, classes=_classes(preset))
    if not preset.knows_classes:
        images = replace(images, labels=np.zeros(len(images), np.int64), class_names=preset.labels)
    real, held_out = _halves(images.labels)
    how = "; not used: ".join(["random halves of each class", *images.skipped])
    return Reference(images.take(real), images.take(held_out), f"{source} ({how})", resized)


def _classes(preset: ModelFolder) -> ClassNames | None:
    """What the data's classes are matched with; nothing for a model that knows no classes."""
    return preset.classes if preset.knows_classes else None


def read_embedded(preset: ModelFolder, role: str) -> LabelledImages:
    """Real images that ship with a model: ``reference`` (test images) or ``held_out`` (for the real baseline)."""
    with np.load(preset.file(role), allow_pickle=False) as arrays:
        return LabelledImages(arrays["images"], arrays["labels"], tuple(arrays["class_names"].tolist()))


def match_counts(images: LabelledImages, counts: Mapping[int, int]) -> LabelledImages:
    """Random images with the given number per class, or as many as there are."""
    return images.take(rows_within(images.labels, counts))


def rows_within(class_ids: NDArray[np.int64], available: Mapping[int, int]) -> NDArray[np.int64]:
    """Ascending rows, at most the available number per class, chosen at random with a fixed seed."""
    order = np.random.default_rng(SEED).permutation(len(class_ids))
    chosen = [order[class_ids[order] == class_id][:count] for class_id, count in sorted(available.items())]
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def disjoint_rows(class_ids: NDArray[np.int64], counts: Mapping[int, int], draws: int) -> tuple[NDArray[np.int64], ...]:
    """Up to ``draws`` disjoint sets of ascending random rows, each with the given number per class; at least one.

    The first is that of ``rows_within``.
    """
    order = np.random.default_rng(SEED).permutation(len(class_ids))
    rows = {class_id: order[class_ids[order] == class_id] for class_id in sorted(counts)}
    possible = min(len(own) // counts[class_id] for class_id, own in rows.items())
    return tuple(
        np.sort(np.concatenate([own[place * counts[each] : (place + 1) * counts[each]] for each, own in rows.items()]))
        for place in range(max(1, min(draws, possible)))
    )


def _halves(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.random.default_rng(SEED).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)
    for class_id in np.unique(labels):
        members = order[labels[order] == class_id]
        rank[members] = np.arange(len(members))
    even = rank % 2 == 0
    if even.all():
        raise DataError(bad("reference", f"{len(labels)} images", "a folder with at least two images of some class"))
    return np.flatnonzero(even), np.flatnonzero(~even)


def with_keys(images: LabelledImages) -> LabelledImages:
    """The same images with their numbers from 0 as keys, if they have no keys."""
    return images if images.keys else replace(images, keys=tuple(str(row) for row in range(len(images))))
