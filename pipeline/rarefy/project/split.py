"""The held-out images of a project: which ones they are, and the shards they are written to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import webdataset
from numpy.typing import NDArray

from rarefy.errors import DataError, bad
from rarefy.images import LabelledImages, pixel_digest
from rarefy.shards.writer import TAR_OWNER, encode_png

SMALL_CLASS = 10  # a class with at least so many images has at least two held out
PER_SHARD = 1000


@dataclass(frozen=True)
class Split:
    """Ascending rows of the images to train on and of the held-out ones; bare: classes without a held-out image."""

    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    bare: tuple[int, ...]


def held_out_count(images: int, fraction: float) -> int:
    """How many images of a class are held out: the fraction, at least 2 of 10 or more, at most half."""
    return min(max(round(fraction * images), 2 if images >= SMALL_CLASS else 0), images // 2)


def split_off(data: LabelledImages, fraction: float, seed: int) -> Split:
    """Choose held-out images at random, class by class.

    Only images whose pixels occur once are chosen, so that no copy of a held-out image is left to train on.
    Raises DataError if no class can spare an image.
    """
    rng, single = np.random.default_rng(seed), _occur_once(data)
    chosen, bare = [], []
    for class_id in range(len(data.class_names)):
        rows = np.flatnonzero(data.labels == class_id)
        picked = rng.permutation(rows[single[rows]])[: held_out_count(len(rows), fraction)]
        chosen.append(picked)
        if not len(picked):
            bare.append(class_id)
    held_out = np.sort(np.concatenate(chosen))
    if not len(held_out):
        largest = int(np.bincount(data.labels).max())
        allowed = "enough to hold out one image of a class; add images, or give a test set with --test"
        raise DataError(bad("data", f"at most {largest} different images per class", allowed))
    return Split(np.setdiff1d(np.arange(len(data)), held_out), held_out, tuple(bare))


def _occur_once(data: LabelledImages) -> NDArray[np.bool_]:
    """(N,) whether no other image has the same pixels."""
    digests = [pixel_digest(image) for image in data.images]
    _, place, counts = np.unique(np.array(digests, "V16"), return_inverse=True, return_counts=True)
    once: NDArray[np.bool_] = counts[place] == 1
    return once


def write_reference(data: LabelledImages, folder: Path) -> int:
    """Write held-out images as WebDataset shards with KEY.png, KEY.cls and KEY.json; returns the number of shards.

    KEY.json has class_name, and source: the image's name in the user's data. Equal images give equal bytes.
    """
    folder.mkdir(parents=True)
    starts = range(0, len(data), PER_SHARD)
    for shard, start in enumerate(starts):
        options = {"user": TAR_OWNER, "group": TAR_OWNER, "mtime": 0, "encoder": False}
        with (
            (folder / f"reference-{shard:06d}.tar").open("wb") as stream,
            webdataset.TarWriter(stream, **options) as tar,
        ):
            for row in range(start, min(start + PER_SHARD, len(data))):
                tar.write({"__key__": f"{row:06d}", **_sample(data, row)})
    return len(starts)


def _sample(data: LabelledImages, row: int) -> dict[str, bytes]:
    label = int(data.labels[row])
    about = {"class_name": data.class_names[label], "source": data.keys[row] if data.keys else str(row)}
    return {
        "png": encode_png(data.images[row]),
        "cls": str(label).encode(),
        "json": json.dumps(about, ensure_ascii=False).encode(),
    }
