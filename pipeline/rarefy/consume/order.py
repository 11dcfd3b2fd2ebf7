"""Which images an epoch uses, and in which order: functions of seed and epoch alone.

The random numbers are raw output of the Philox generator, which numpy never changes.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


def shuffled(count: int, *purpose: object) -> Places:
    """A permutation of 0 to ``count - 1``. purpose: what it is for, seed and epoch included."""
    digest = hashlib.blake2b(":".join(map(str, purpose)).encode(), digest_size=16).digest()
    numbers = np.random.Philox(key=int.from_bytes(digest, "big")).random_raw(count)
    return np.argsort(numbers, kind="stable").astype(np.int64)


def epoch_order(count: int, seed: int, epoch: int, shuffle: bool) -> Places:
    """The places of an epoch's images in the order in which they are used."""
    return shuffled(count, "epoch", seed, epoch) if shuffle else np.arange(count)


def share(order: Places, start: int, rank: int, ranks: int, remainder: str) -> Places:
    """The part of an epoch that one of several ranks uses: every ``ranks``-th place from ``start + rank`` on.

    remainder: what happens to the last places if the ranks cannot have equally many: ``drop`` leaves them out, ``pad``
    repeats places from the beginning of the order, ``keep`` gives some ranks one more.
    """
    left = order[start:]
    extra = len(left) % ranks
    if extra and remainder == "drop":
        left = left[: len(left) - extra]
    elif extra and remainder == "pad":
        left = np.concatenate([left, np.resize(order, ranks - extra)])
    return left[rank::ranks]


def share_size(left: int, rank: int, ranks: int, remainder: str) -> int:
    """How many places ``share`` gives to a rank if ``left`` are left."""
    extra = {"drop": 0, "pad": ranks - 1, "keep": ranks - 1 - rank}[remainder]
    return (left + extra) // ranks


class Deck:
    """Deals ``count`` of ``members`` in every epoch: each of them equally often, give or take one.

    Those that not every deal can have are dealt from a shuffled deck, which is shuffled again when too few are left
    for an epoch. So no epoch repeats an image more often than it must, and over the epochs all have their turn.
    """

    def __init__(self, members: Places, count: int, *purpose: object) -> None:
        self.members, self.count, self.purpose = members, count, purpose
        self._rest = count % max(1, len(members))
        self._deal: tuple[int, Places] = (-1, members[:0])

    def __len__(self) -> int:
        return self.count

    def card(self, epoch: int, number: int) -> int:
        """The member that is dealt as ``number`` (from 0) in an epoch."""
        if number < self.count - self._rest:
            return int(self.members[number % len(self.members)])
        deals = len(self.members) // self._rest
        if self._deal[0] != epoch // deals:
            self._deal = epoch // deals, shuffled(len(self.members), "deck", *self.purpose, epoch // deals)
        place = (epoch % deals) * self._rest + number - (self.count - self._rest)
        return int(self.members[self._deal[1][place]])
