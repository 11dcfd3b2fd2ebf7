"""The real images that are searched for copies, and where other images lie among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.cache import array_digest, cached
from rarefy.audit.features.extractors import Extractor, cache_key
from rarefy.audit.metrics.copies import RANKS, Closeness, real_spacing, spacing_ratios
from rarefy.audit.metrics.pixels import CANDIDATES, ImageStack, Indices, Pixels, PixelSearch
from rarefy.audit.metrics.ranking import nearest_rows
from rarefy.images import LabelledImages, pixel_digest

VERSION = "1"  # of the search, whose results are cached

Matrix = NDArray[np.floating]
Ratios = NDArray[np.float64]
Step = partial[None]


@dataclass(frozen=True)
class Gallery:
    """Images to search, each picture once.

    search: by pixels; features (G, D); kinds, rows (G,): the source of each image and its row there; places: by digest
    of the pixels; trained: so many images, from the first, are of the first source, which stands for the training set.
    """

    search: PixelSearch
    features: Matrix
    kinds: NDArray[np.str_]
    rows: Indices
    places: dict[bytes, int]
    trained: int

    def place(self, image: Pixels) -> int:
        """Where the gallery has this picture, -1 if it has not."""
        return self.places.get(pixel_digest(image), -1)

    @property
    def training(self) -> Matrix:
        """Features of the images of the first source."""
        return self.features[: self.trained]


@dataclass(frozen=True)
class ImageSet:
    """N images with their features (N, D), rounded like those of the gallery.

    itself (N,): the place of each image in the gallery, which does not count there; -1 for none.
    """

    images: Pixels
    features: Matrix
    itself: Indices | None = None

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Indices) -> ImageSet:
        return ImageSet(self.images[rows], self.features[rows], None if self.itself is None else self.itself[rows])


@dataclass(frozen=True)
class Look:
    """Where N images lie in a gallery: as in ``Closeness``, and the spacing of the gallery's images there.

    trained, trained_index (N,): distance by features to the nearest image of the first source, and which it is.
    """

    pixel: Ratios
    feature: Ratios
    pixel_index: Indices
    feature_index: Indices
    pixel_spacing: Ratios
    feature_spacing: Ratios
    trained: Ratios
    trained_index: Indices

    @property
    def closeness(self) -> Closeness:
        return Closeness(self.pixel, self.feature, self.pixel_index, self.feature_index)

    def take(self, rows: Indices) -> Look:
        return Look(**{name: column[rows] for name, column in vars(self).items()})


def make_gallery(sources: Mapping[str, LabelledImages], features: list[Matrix], device: str) -> Gallery:
    """A gallery of the sources by kind. features: of each source (N, D)."""
    places, distinct, ends, number = dict[bytes, int](), list[int](), list[int](), 0
    for images in sources.values():
        for image in images.images:
            if places.setdefault(pixel_digest(image), len(distinct)) == len(distinct):
                distinct.append(number)
            number += 1
        ends.append(len(distinct))
    chosen, counts = np.array(distinct, np.int64), [len(images) for images in sources.values()]
    stack = ImageStack(tuple(images.images for images in sources.values()), chosen)
    return Gallery(
        search=PixelSearch(stack, device),
        features=np.concatenate(features)[chosen],
        kinds=np.repeat(list(sources), counts)[chosen],
        rows=np.concatenate([np.arange(count) for count in counts])[chosen],
        places=places,
        trained=ends[0],
    )


def look(images: ImageSet, gallery: Gallery, device: str, step: Step | None = None) -> Look:
    """Find each image's most similar ones in the gallery, by pixels and by features."""
    near, near_index = nearest_rows(images.features, gallery.features, RANKS[1], images.itself, device)
    matches = gallery.search.nearest(images.images, CANDIDATES, images.itself, step)
    pixel, pixel_index = spacing_ratios(matches.distance), matches.index[:, 0].copy()
    for row, image in enumerate(images.images):
        same = gallery.place(image)
        if same >= 0 and (images.itself is None or same != images.itself[row]):
            pixel[row], pixel_index[row] = 0.0, same
    trained, trained_index = near, near_index
    if gallery.trained < len(gallery.features):
        trained, trained_index = nearest_rows(images.features, gallery.training, 1, device=device)
    return Look(
        pixel=pixel,
        feature=spacing_ratios(near),
        pixel_index=pixel_index,
        feature_index=near_index[:, 0],
        pixel_spacing=real_spacing(matches.distance),
        feature_spacing=real_spacing(near),
        trained=trained[:, 0],
        trained_index=trained_index[:, 0],
    )


def kept_look(
    images: ImageSet, gallery: Gallery, sha256: str, extractor: Extractor, device: str, step: Step | None = None
) -> Look:
    """As ``look``, through the disk cache. sha256: of the gallery's images."""
    key = ("look", VERSION, sha256, *cache_key(extractor, images.images))
    if images.itself is not None:
        key = (*key, array_digest(images.itself))
    found: dict[str, Any] = dict(cached(key, lambda: vars(look(images, gallery, device, step))))
    return Look(**found)
