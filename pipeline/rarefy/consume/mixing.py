"""Real and generated images mixed at a ratio, overall or by class."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from rarefy.consume.images import Images, Index, hash_keys
from rarefy.consume.order import Deck
from rarefy.consume.rare import RareImages
from rarefy.consume.real import RealImages
from rarefy.errors import DataError, bad, near_name
from rarefy.images.names import fold
from rarefy.shards.store import Store

RATIO = "a fraction of generated images from 0 to below 1"


class MixedImages(Images):
    """An epoch of every real image, once, and then as many generated ones as the decks deal. See ``mix``.

    real_count, rare_count: how many an epoch has of each; the order of an epoch is up to the sampler.
    """

    def __init__(self, real: RealImages, rare: RareImages, decks: list[Deck]) -> None:
        self.real, self.rare, self.decks = real, rare, decks
        self.class_names = rare.class_names
        self.real_count = len(real)
        self._ends = list(accumulate(len(deck) for deck in decks))
        self.rare_count = self._ends[-1] if decks else 0

    def __len__(self) -> int:
        return self.real_count + self.rare_count

    def __str__(self) -> str:
        share = self.rare_count / len(self)
        used = self.rare_count / len(self.rare)
        return (
            f"{self.real_count:,} real and {self.rare_count:,} generated images per epoch ({share:.1%} generated; each "
            f"of {len(self.rare):,} is used {used:.2f} times on average)"
        )

    def is_rare(self, index: Index) -> bool:
        """Whether an image is generated."""
        return self._checked(index)[1] >= self.real_count

    def key(self, index: Index) -> str:
        """The name of the real image, or the key of the generated one."""
        images, place = self._source(*self._checked(index))
        return images.key(place)

    def fingerprint(self) -> str:
        decks = (f"{deck.count} {deck.purpose}" for deck in self.decks)
        return hash_keys([self.real.fingerprint(), self.rare.fingerprint(), *decks])

    def _item(self, epoch: int, place: int) -> tuple[Any, int]:
        images, inner = self._source(epoch, place)
        return images[inner]

    def _source(self, epoch: int, place: int) -> tuple[Images, int]:
        """The part that an image comes from, and its place there."""
        if place < self.real_count:
            return self.real, place
        number = place - self.real_count
        deck = bisect_right(self._ends, number)
        before = self._ends[deck - 1] if deck else 0
        return self.rare, self.decks[deck].card(epoch, number - before)


def mix(
    real: RealImages | str | Path,
    rare: RareImages | Store | str | Path,
    *,
    ratio: float | None = None,
    per_class: Mapping[str | int, float] | None = None,
    repeat: int = 1,
    seed: int = 0,
) -> MixedImages:
    """Mix all real images with generated ones.

    real: the images, or their path; then they get the transform of the generated ones. rare: the images, or their
    run's output.
    ratio: the fraction of generated images in an epoch. With R real images an epoch has R ratio / (1 - ratio) generated
    ones, rounded. per_class: such a ratio for each class that is to have generated images, by name or class id, with R
    counted within the class. Without both, an epoch has every generated image once.
    repeat: how often an epoch may use a generated image. If there are more images than an epoch needs, the next epochs
    use the others; ``seed`` decides which.
    Raises DataError for a ratio that needs more images than there are.
    """
    if not isinstance(rare, RareImages):
        rare = RareImages(rare)
    if not isinstance(real, RealImages):
        real = RealImages(real, rare, transform=rare.transform)
    if real.class_names != rare.class_names:
        raise DataError("real: these images have the classes of another model; give RealImages(..., like=rare)")
    if ratio is not None and per_class is not None:
        raise DataError("per_class: cannot be used together with ratio; give one of them")
    if type(repeat) is not int or repeat < 1:
        raise DataError(bad("repeat", repeat, "a whole number from 1"))
    every = np.arange(len(rare))
    if per_class is not None:
        return MixedImages(real, rare, _class_decks(real, rare, per_class, repeat, seed))
    count = len(rare) if ratio is None else needed(ratio, len(real), "ratio")
    _check_enough(f"ratio: {ratio}", count, len(rare), len(real), repeat)
    return MixedImages(real, rare, [Deck(every, count, seed)])


def needed(ratio: float, real_count: int, field: str) -> int:
    """How many generated images make up this fraction together with ``real_count`` real ones, rounded half up."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise DataError(bad(field, ratio, RATIO))
    return math.floor(real_count * ratio / (1 - ratio) + 0.5)


def _class_decks(
    real: RealImages, rare: RareImages, per_class: Mapping[str | int, float], repeat: int, seed: int
) -> list[Deck]:
    decks: dict[int, Deck] = {}
    for name, ratio in per_class.items():
        class_id, field = find_class(name, rare.class_names), f"per_class.{name}"
        if class_id in decks:
            raise DataError(f"{field}: the class {rare.class_names[class_id]!r} was given twice; give it once")
        real_count = int((real.labels == class_id).sum())
        if not real_count:
            raise DataError(f"{field}: there is no real image of this class, so a ratio means nothing; leave it out")
        members = np.flatnonzero(rare.labels == class_id)
        count = needed(ratio, real_count, field)
        _check_enough(f"{field}: {ratio}", count, len(members), real_count, repeat)
        decks[class_id] = Deck(members, count, seed, class_id)
    return list(decks.values())


def find_class(name: str | int, class_names: tuple[str, ...]) -> int:
    """The class of this name or id; case, spaces, ``/``, ``_`` and ``-`` do not count."""
    if type(name) is int and 0 <= name < len(class_names):
        return name
    wanted = fold(name) if isinstance(name, str) else None
    found = [class_id for class_id, each in enumerate(class_names) if fold(each) == wanted]
    if len(found) > 1:
        ids = " and ".join(map(str, found))
        raise DataError(bad("per_class", name, f"the name of one class: {ids} have it; give the class id, a number"))
    if not found:
        near = near_name(name, class_names)
        allowed = "a class of this data set" + ("" if near is None else f" (nearest: {near})")
        raise DataError(bad("per_class", name, allowed))
    return found[0]


def _check_enough(field: str, count: int, there: int, real_count: int, repeat: int) -> None:
    if count <= there * repeat:
        return
    best = there * repeat / (there * repeat + real_count)
    advice = f" or allow repeat={math.ceil(count / there)}" if there else ""
    raise DataError(
        f"{field} needs {count:,} generated images for {real_count:,} real ones, and there are {there:,}; use at most "
        f"{math.floor(best * 1e4) / 1e4:g}{advice}"
    )
