"""The images of an epoch as a data set of Ray Data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rarefy.consume.images import Images
from rarefy.consume.order import epoch_order
from rarefy.errors import DataError

if TYPE_CHECKING:
    import ray.data

BLOCK_IMAGES = 256  # that one task reads


def ray_dataset(data: Images, *, seed: int = 0, epoch: int = 0, shuffle: bool = True) -> ray.data.Dataset:
    """One row per image of an epoch: ``image`` (what the transform returns, as an array), ``label``, ``key``.

    The images are read when the data set is used, by Ray's tasks, on any machine that can read OUT. Blocks come in the
    order that seed and epoch give; for that order exactly, set Ray Data's ``preserve_order``.
    Raises DataError without Ray Data.
    """
    try:
        import ray.data
    except ImportError:
        raise DataError("ray_dataset: needs Ray Data; pip install 'ray[data]'") from None

    def read(row: dict[str, Any]) -> dict[str, Any]:
        place = int(row["data"])
        image, label = data[epoch, place]
        return {"image": np.asarray(image), "label": label, "key": data.key((epoch, place))}

    order = epoch_order(len(data), seed, epoch, shuffle)
    blocks = np.array_split(order, -(-len(order) // BLOCK_IMAGES))
    return ray.data.from_numpy(blocks).map(read)
