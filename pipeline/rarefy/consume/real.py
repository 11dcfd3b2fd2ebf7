"""Real images with the class ids of generated ones, as a torch data set with random access."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rarefy.consume.images import CHANNELS, Images, Index, Transform, hash_keys, pixels_to_tensor
from rarefy.consume.rare import RareImages
from rarefy.images import class_ids, open_source
from rarefy.images.decode import BrokenImageError, one_line_causes, to_pixels, upright
from rarefy.images.loading import broken_error
from rarefy.shards.store import Store


class RealImages(Images):
    """The images of a data set of any form that rarefy reads (docs/DATA.md). See Images for what an item is.

    like: the generated images or their run's output, whose class ids, mode and size these images take. Classes are
    matched by name.
    split: ``train`` or ``test``. transform: gets a PIL image, upright, of its own size; without one, an image of
    another size is cropped to its central square and resized, as for training the model.
    Raises DataError if a class of the data is not one of the model's, and for an image that cannot be read.
    """

    def __init__(
        self,
        source: str | Path,
        like: RareImages | Store | str | Path,
        *,
        split: str = "train",
        transform: Transform | None = None,
    ) -> None:
        if not isinstance(like, RareImages):
            like = RareImages(like)
        found = open_source(Path(source).absolute(), split)  # Ray's processes have other working folders
        ids = class_ids(found, like.classes)
        self.class_names, self.size, self.mode = like.class_names, like.size, like.mode
        self.transform = transform
        self.labels = np.array([ids[item.label] for item in found.items], np.int64)
        self._items = found.items

    def __len__(self) -> int:
        return len(self._items)

    def key(self, index: Index) -> str:
        """The image's file within the folder, or its key within the shards."""
        return self._items[self._checked(index)[1]].key

    def fingerprint(self) -> str:
        return hash_keys(item.key for item in self._items)

    def _item(self, epoch: int, place: int) -> tuple[Any, int]:
        item, label = self._items[place], int(self.labels[place])
        try:
            image = item.place.open()
            if self.transform is None:
                return pixels_to_tensor(to_pixels(image, self.size, CHANNELS[self.mode])), label
            with one_line_causes():
                image = upright(image).convert(self.mode)
        except BrokenImageError as error:
            raise broken_error(item, str(error)) from None
        return self.transform(image), label
