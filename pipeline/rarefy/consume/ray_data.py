"""The images of an epoch as a data set of Ray Data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rarefy.consume.images import Images
from rarefy.consume.order import epoch_order
from rarefy.consume.rare import RareImages
from rarefy.errors import DataError
from rarefy.shards.store import Store

if TYPE_CHECKING:
    import ray.data

BLOCK_IMAGES = 256  # that one task reads


def ray_dataset(
    data: Images | Store | str | Path, *, seed: int = 0, epoch: int = 0, shuffle: bool = True
) -> ray.data.Dataset:
    """One row per image of an epoch: ``image`` (what the transform returns, as an array), ``label``, ``key``.

    data: the images, or a run's output for all of its accepted ones.
    The images are read when the data set is used, by Ray's tasks, on any machine that can read OUT. Blocks come in the
    order that seed and epoch give; for that order exactly, set Ray Data's ``preserve_order``.
    Raises DataError without Ray Data.
    """
    try:
        import ray.data
    except ImportError:
        raise DataError("ray_dataset: needs Ray Data; pip install 'ray[data]'") from None

    images = data if isinstance(data, Images) else RareImages(data)

    def read(row: dict[str, Any]) -> dict[str, Any]:
        place = int(row["data"])
        image, label = images[epoch, place]
        return {"image": np.asarray(image), "label": label, "key": images.key((epoch, place))}

    order = epoch_order(len(images), seed, epoch, shuffle)
    blocks = np.array_split(order, -(-len(order) // BLOCK_IMAGES))
    return ray.data.from_numpy(blocks).map(read)
