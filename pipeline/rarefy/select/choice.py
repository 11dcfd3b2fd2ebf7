"""Which samples of a pool [select] keeps. The choice follows from the pool's metadata and its rarity alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rarefy.audit.rarity.table import Measure, Part, rarity_path, read_part
from rarefy.errors import ShardError
from rarefy.plan import shard_names
from rarefy.selection import BY_RARITY, Select
from rarefy.shards.marker import read_committed
from rarefy.shards.metadata import parquet_path, read_table
from rarefy.shards.store import Store

if TYPE_CHECKING:
    # Importing it at run time would load torch into every process that only checks shards.
    from rarefy.manifest import Manifest

FORMAT = "rarefy-selection-v1"
SPARE_ROWS = 1 << 20  # rows in memory beyond those that may be kept, if these are fewer
ACCEPTABLE, ON_CLASS_ONLY, OTHER = 0, 1, 2  # grades of a sample; a lower one goes first

Keys = NDArray[np.int64]


@dataclass(frozen=True)
class ClassChoice:
    """What was chosen of a class. acceptable: pool images that [select] allows; filled: kept ones beyond those.

    lowest: the smallest value of ``by`` among the acceptable images that are kept (for confidence, the largest); None
    if there are none.
    """

    class_id: int
    pool: int
    acceptable: int
    kept: int
    filled: int
    lowest: float | None


@dataclass(frozen=True)
class Choice:
    """keys: of the kept samples per class, as integers, ascending; per_class: in ascending order.

    measure: how the pool's rarity was measured, None if the choice needs none; rarity_sha256: of all its files.
    """

    keys: Mapping[int, Keys]
    per_class: tuple[ClassChoice, ...]
    measure: Measure | None
    rarity_sha256: str | None

    @property
    def filled(self) -> int:
        """Kept samples that are not acceptable to [select]."""
        return sum(each.filled for each in self.per_class)

    @property
    def lacking(self) -> tuple[ClassChoice, ...]:
        """The classes with fewer acceptable images than the data set needs."""
        return tuple(each for each in self.per_class if each.filled)

    def record(self, manifest: Manifest) -> bytes:
        """The content of rarefy.plan.RECORD, which says how the set was chosen."""
        assert manifest.select is not None
        content = {
            "format": FORMAT,
            "manifest_digest": manifest.digest,
            "rule": manifest.select.text(),
            "select": asdict(manifest.select),
            "pool": sum(each.pool for each in self.per_class),
            "kept": sum(each.kept for each in self.per_class),
            "filled": self.filled,
            "measure": None if self.measure is None else asdict(self.measure),
            "rarity_sha256": self.rarity_sha256,
            "classes": [
                {"class_name": manifest.preset.class_name(each.class_id), **asdict(each)} for each in self.per_class
            ],
        }
        return json.dumps(content, indent=1).encode() + b"\n"


@dataclass(frozen=True)
class _Rows:
    """Candidates: one value per sample. value: higher ones are kept first among those of one grade."""

    class_id: NDArray[np.int64]
    grade: NDArray[np.int64]
    value: NDArray[np.float64]
    key: Keys

    def take(self, rows: NDArray[np.int64]) -> _Rows:
        return _Rows(self.class_id[rows], self.grade[rows], self.value[rows], self.key[rows])

    def best(self, counts: Mapping[int, int]) -> _Rows:
        """The first ``counts`` rows of each class: by grade, then by value, then by key."""
        order = np.lexsort((self.key, -self.value, self.grade, self.class_id))
        classes = self.class_id[order]
        starts = np.searchsorted(classes, classes)
        wanted = np.array([counts.get(each, 0) for each in range(int(classes.max(initial=0)) + 1)], np.int64)
        return self.take(order[np.arange(len(order)) - starts < wanted[classes]])


def choose(store: Store, manifest: Manifest) -> Choice:
    """Choose the samples that the data set keeps: of each class as many as [classes] says.

    Where a class has too few acceptable samples, others fill it up: those on class first, the most typical ones first.
    Memory: twice the rows that may be kept, or these and SPARE_ROWS. Raises ShardError for a pool or rarity that is not
    complete or contradicts itself, naming the file.
    """
    assert manifest.select is not None
    pool, acceptable = Counter[int](), Counter[int]()
    waiting, held, most = list[_Rows](), 0, manifest.total + max(manifest.total, SPARE_ROWS)
    digest, measures = hashlib.sha256(), set[str]()
    for name in shard_names(manifest):
        rows, part = _read(store, manifest, manifest.select, name)
        pool.update(rows.class_id.tolist())
        acceptable.update(rows.class_id[rows.grade == ACCEPTABLE].tolist())
        waiting.append(rows)
        held += len(rows.key)
        if part is not None:
            digest.update(part.sha256.encode())
            measures.add(json.dumps(json.loads(part.basis)["measure"]))
        if held > most:
            waiting = [_joined(waiting).best(manifest.counts)]
            held = len(waiting[0].key)
    if len(measures) > 1:
        raise ShardError("rarity: its files were measured in several ways; run select again")
    kept = _joined(waiting).best(manifest.counts)
    return Choice(
        keys={class_id: np.sort(kept.key[kept.class_id == class_id]) for class_id in manifest.counts},
        per_class=tuple(_class(kept, each, pool[each], acceptable[each], manifest.select) for each in manifest.counts),
        measure=Measure(**json.loads(measures.pop())) if measures else None,
        rarity_sha256=digest.hexdigest() if manifest.select.needs_real_images else None,
    )


def _class(kept: _Rows, class_id: int, pool: int, acceptable: int, select: Select) -> ClassChoice:
    own = kept.class_id == class_id
    values = kept.value[own & (kept.grade == ACCEPTABLE)]
    lowest = None if not len(values) else float(values.min()) * (-1 if select.by == "confidence" else 1)
    count = int(own.sum())
    return ClassChoice(class_id, pool, acceptable, count, count - len(values), lowest)


def _joined(rows: list[_Rows]) -> _Rows:
    names = ("class_id", "grade", "value", "key")
    return _Rows(*(np.concatenate([getattr(each, name) for each in rows]) for name in names))


def _read(store: Store, manifest: Manifest, select: Select, name: str) -> tuple[_Rows, Part | None]:
    """The candidates of one pool shard, and its rarity if the choice depends on it."""
    marker = read_committed(store, name, manifest.digest)
    if marker is None:
        raise ShardError(f"{name}: not committed; run generate first")
    with store.local_copy(parquet_path(name)) as path:
        table = read_table(path)
    part = read_part(store, name) if select.needs_real_images else None
    if part is not None:
        _check_part(part, table, name, marker.tar_sha256)
    on_class = np.array([not select.on_class] * len(table)) | _equal(table, "predicted_id", "class_id")
    inside = np.array(part.table["inside"]) if part is not None and select.inside else np.ones(len(table), bool)
    accepted = np.array(table["accepted"])
    grade = np.where(on_class & inside & accepted, ACCEPTABLE, np.where(on_class, ON_CLASS_ONLY, OTHER))
    value = np.array((part.table if part is not None and select.by in BY_RARITY else table)[select.by], np.float64)
    value = -value if select.by == "confidence" else value
    keys = np.array([int(key) for key in table["key"].to_pylist()], np.int64)
    classes = np.array(table["class_id"], np.int64)
    return _Rows(classes, grade, np.where(grade == ACCEPTABLE, value, -value), keys), part


def _check_part(part: Part, table: pa.Table, name: str, tar_sha256: str) -> None:
    """Raise ShardError unless the rarity is that of this shard's images."""
    try:
        same = json.loads(part.basis)["tar_sha256"] == tar_sha256
    except (ValueError, LookupError, TypeError):
        same = False
    columns = [part.table[column].to_pylist() == table[column].to_pylist() for column in ("key", "class_id")]
    if not (same and all(columns)):
        raise ShardError(f"{rarity_path(name)}: not of this shard's images; run select again")


def _equal(table: pa.Table, first: str, second: str) -> NDArray[np.bool_]:
    columns = (np.array(table[column].fill_null(-1)) for column in (first, second))
    return np.asarray(np.equal(*columns))


def class_names(manifest: Manifest, classes: tuple[ClassChoice, ...]) -> Iterator[str]:
    """Each class with the numbers of its wanted and acceptable images, for messages."""
    for each in classes:
        name = manifest.preset.class_name(each.class_id)
        yield f"{name} ({each.acceptable:,} of {each.pool:,} sampled images, {each.kept:,} wanted)"
