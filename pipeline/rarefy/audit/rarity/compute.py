"""Computes the rarity of every image of a run, shard by shard; finished shards are not computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.extraction import outputs_of_parts
from rarefy.audit.features.extractors import Extractor, Features, check_finite
from rarefy.audit.inputs.dataset import Problem
from rarefy.audit.metrics.neighbors import Manifold, Neighborhood, find_neighbors
from rarefy.audit.rarity.table import Basis, Measure, RarityColumns, encode_part, has_basis, place_part, rarity_path
from rarefy.errors import StorageError
from rarefy.images import LabelledImages
from rarefy.shards.marker import Marker
from rarefy.shards.reader import read_samples
from rarefy.shards.store import Store

Progress = Callable[[str, int, int], None]
Floats = NDArray[np.float32]

STAGE = "rarity of every image"
THREADS = 4  # that look for finished files; on object stores most time is spent waiting
BATCH = 256  # shards looked for at once
GROUP_BYTES = 1 << 27  # of decoded images that are measured together


@dataclass(frozen=True)
class RealSide:
    """The real images that rarity is measured against. manifold: called if some shard needs it."""

    images: LabelledImages
    sha256: str
    manifold: Callable[[], Manifold]


@dataclass(frozen=True)
class Means:
    """What computes the features, and where. ray_address: a cluster, None for this process."""

    extractor: Extractor
    k: int
    device: str
    ray_address: str | None


def measure_of(means: Means, reference_sha256: str) -> Measure:
    """What a file says about how its values were measured."""
    extractor = means.extractor
    source = extractor.name, extractor.layer, extractor.digest, extractor.preprocessing
    return Measure(*source, k=means.k, reference_sha256=reference_sha256)


def write_rarity(
    store: Store, markers: Iterable[Marker], images: int, real: RealSide, means: Means, progress: Progress
) -> list[Problem]:
    """Write OUT/rarity/<shard>.parquet for every committed shard that does not have it yet.

    images: of all shards, for progress(stage, done, total). Shards that cannot be read are left out and returned as
    problems. Memory: the real features, and the images of a shard or GROUP_BYTES of them. Raises StorageError,
    DataError and DeviceError.
    """
    measure, problems, done = measure_of(means, real.sha256), list[Problem](), 0
    shards = _unfinished(store, markers, measure, problems)
    for group in _groups(shards):
        progress(STAGE, done, images)
        for shard, columns in zip(group, _columns(group, real.manifold(), real.images.keys, means), strict=True):
            basis = Basis(measure, shard.marker.tar_sha256)
            place_part(store, shard.marker.name, encode_part(columns, basis), basis)
            done += len(shard.keys)
        progress(STAGE, done, images)
    return problems


def finite_rarity(neighborhood: Neighborhood) -> Floats:
    """(N,) rarity, and for images outside every real ball the distance to the nearest real image.

    To that radius the ball of that real image would have to grow to contain the image, so no image inside it would
    get a smaller value. In feature units.
    """
    return np.asarray(np.where(neighborhood.balls > 0, neighborhood.rarity, neighborhood.nearest), np.float32)


@dataclass(frozen=True)
class _Shard:
    """A shard without a current file. keys, classes (N), images (N, C, H, W): in the tar's order."""

    marker: Marker
    keys: list[str]
    classes: list[int]
    images: NDArray[np.uint8]


def _unfinished(store: Store, markers: Iterable[Marker], measure: Measure, problems: list[Problem]) -> Iterator[_Shard]:
    """The shards without a file of this basis; one problem for each that cannot be read."""

    def finished(marker: Marker) -> bool:
        data = store.read_or_none(rarity_path(marker.name))
        return data is not None and has_basis(data, Basis(measure, marker.tar_sha256))

    each = iter(markers)
    with ThreadPoolExecutor(THREADS) as pool:
        while batch := list(islice(each, BATCH)):
            for marker, done in zip(batch, pool.map(finished, batch), strict=True):
                if not done and (shard := _read(store, marker, problems)) is not None:
                    yield shard


def _read(store: Store, marker: Marker, problems: list[Problem]) -> _Shard | None:
    try:
        samples = list(read_samples(store, marker.name))
        images = np.stack([sample.image for sample in samples])
        return _Shard(marker, [each.key for each in samples], [each.class_id for each in samples], images)
    except StorageError:
        raise  # it says nothing about the shard
    except ValueError as error:  # a ShardError is one; so is the error for images of several sizes
        problems.append(Problem(rarity_path(marker.name), f"left out: {error}"))
        return None


def _groups(shards: Iterable[_Shard]) -> Iterator[list[_Shard]]:
    """Shards that are measured together, so that a cluster has several at once."""
    group: list[_Shard] = []
    for shard in shards:
        group.append(shard)
        if sum(each.images.nbytes for each in group) >= GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _columns(
    group: Sequence[_Shard], real: Manifold, real_keys: Sequence[str], means: Means
) -> Iterator[RarityColumns]:
    """The rarity of each shard's images."""
    keys = [key for shard in group for key in shard.keys]
    parts = [shard.images for shard in group]
    outputs = outputs_of_parts(parts, means.extractor, means.device, means.ray_address, _nothing, keep=False)
    features = np.ascontiguousarray(outputs[:, : means.extractor.dim])
    check_finite("features", features, keys)
    found = find_neighbors(_points(features, means.k), real, means.device)
    rarity, start = finite_rarity(found), 0
    for shard in group:
        rows = slice(start, start + len(shard.keys))
        start = rows.stop
        yield RarityColumns(
            key=shard.keys,
            class_id=np.array(shard.classes, np.int64),
            rarity=rarity[rows],
            inside=found.balls[rows] > 0,
            avgknn=found.mean_distance[rows],
            nearest_distance=found.nearest[rows],
            nearest_real=[real_keys[place] for place in found.nearest_index[rows]],
        )


def _points(features: Features, k: int) -> Manifold:
    """Rows without balls of their own: only their place among the real ones is asked for."""
    return Manifold(features, k, np.zeros((len(features), k), np.float32), np.zeros((len(features), k), np.int64))


def _nothing(done: int, total: int) -> None:
    """Progress within a group is not shown."""
