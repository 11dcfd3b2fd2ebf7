"""What the data sets of this package have in common: an image and its class by number, in any epoch."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from rarefy.errors import DataError, bad

Transform = Callable[[Image.Image], Any]
Index = int | tuple[int, int]
CHANNELS = {"L": 1, "RGB": 3}  # by mode of PIL


class Images(Dataset[tuple[Any, int]]):
    """A map-style data set: ``images[place]`` is (image, class id).

    image: what the transform returns for a PIL image, by default a float32 tensor (C, H, W) from 0 to 1. The class id
    is the one of the generated images, also for real ones; ``class_names[class_id]`` is its name.
    ``images[epoch, place]`` is an image of another epoch. It differs only where images are mixed.
    """

    class_names: tuple[str, ...]

    @abstractmethod
    def __len__(self) -> int:
        """Images of an epoch."""

    @abstractmethod
    def key(self, index: Index) -> str:
        """The name of an image."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of what an epoch's order means: equal if equal numbers are equal images."""

    @abstractmethod
    def _item(self, epoch: int, place: int) -> tuple[Any, int]:
        """An image that exists."""

    def __getitem__(self, index: Index) -> tuple[Any, int]:
        return self._item(*self._checked(index))

    def _checked(self, index: Index) -> tuple[int, int]:
        """Epoch and place. Raises IndexError for a place that does not exist."""
        epoch, place = index if isinstance(index, tuple) else (0, index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"image {place} of {len(self)}")
        return int(epoch), int(place) % len(self)


def to_tensor(image: Image.Image) -> Tensor:
    """The pixels as float32 (C, H, W) from 0 to 1."""
    return pixels_to_tensor(np.atleast_3d(np.asarray(image, np.uint8)).transpose(2, 0, 1))


def pixels_to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """The pixels (C, H, W) as float32 from 0 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32)) / 255


def check_mode(mode: str | None, channels: int) -> str:
    """The mode of PIL that images have: grey stays grey unless the caller asks for another. Raises DataError."""
    if mode is None:
        return next(name for name, count in CHANNELS.items() if count == channels)
    if mode not in CHANNELS:
        raise DataError(bad("mode", mode, "L (grey) or RGB"))
    return mode


def hash_keys(keys: Iterable[str]) -> str:
    """A hash of names in order."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f"{key}\n".encode())
    return digest.hexdigest()
