"""A run that is looked at: its rows, refreshed while it grows, and what can be asked about an image."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.rarity.table import FOLDER
from rarefy.audit.schema import METRICS_PATH
from rarefy.consume.exclusions import read_exclusions
from rarefy.consume.rows import COPY_RATIO, RARITY, read_rows
from rarefy.consume.where import matching
from rarefy.errors import DataError
from rarefy.generate.progress import StageProgress, no_stage
from rarefy.manifest import Manifest
from rarefy.plan import data_store
from rarefy.shards.index import is_sealed
from rarefy.shards.listing import committed_numbers
from rarefy.shards.store import Store
from rarefy.view.images import Images
from rarefy.view.table import class_names, encode_table

NOT_MEASURED = "no current audit has measured it; run audit"


@dataclass(frozen=True)
class Stamp:
    """What the rows depend on. shards: the committed ones; measured: number of files of rarity, the audit's size."""

    sealed: bool
    shards: frozenset[int]
    measured: tuple[int, int | None]


@dataclass(frozen=True)
class Rows:
    """The rows at some time, sorted by key."""

    frame: pd.DataFrame
    stamp: Stamp

    @cached_property
    def keys(self) -> pd.Index[str]:
        index: pd.Index[str] = pd.Index(self.frame["key"])
        return index

    def row(self, key: str) -> dict[str, object]:
        """The row of an image. Raises DataError if there is none."""
        if key not in self.keys:
            raise DataError(f"key: {key!r} is not an image of this data set")
        row = self.frame.iloc[self.keys.get_loc(key)]
        return dict(zip(self.frame.columns, row, strict=True))


class Run:
    """The run in ``store``. Safe to use from several threads. Raises OutputError, ShardError, DataError.

    progress: told while the rows are read for the first time.
    """

    def __init__(self, store: Store, progress: StageProgress = no_stage) -> None:
        self.store = store
        self.manifest: Manifest = read_manifest(store)
        self.data = data_store(store, self.manifest)
        self.images = Images(self.data)
        self.classes = class_names(self.manifest)
        self._lock = threading.Lock()
        self.rows = self._read(progress)

    def refresh(self) -> str:
        """Read the rows again if they have changed. Returns a version that changes with them and with the marks.

        Raises ShardError, OutputError, DataError.
        """
        with self._lock:
            if self._stamp() != self.rows.stamp:
                self.rows = self._read()
            return self.version()

    def version(self) -> str:
        """The version of the rows and the exclusion list, without a look at the shards."""
        text = f"{self.rows.stamp}\n{sorted(self.rows.stamp.shards)}\n{sorted(self.excluded())}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def excluded(self) -> frozenset[str]:
        """The dropped images, as the list has them now. Raises DataError for a list with something else in it."""
        return read_exclusions(self.store)

    def table(self) -> bytes:
        """What the page reads, see ``encode_table``."""
        return encode_table(self.rows.frame, self.excluded(), self.classes)

    def where(self, expression: str) -> bytes:
        """One byte per row: 1 where the condition holds. Raises DataError for a bad condition."""
        frame = self.rows.frame
        absent = {name: NOT_MEASURED for name in (*RARITY, COPY_RATIO) if name not in frame}
        return matching(frame, expression, absent).astype(np.uint8).tobytes()

    def png(self, key: str) -> bytes:
        """The image's file. Raises DataError for an unknown key, ShardError for damage."""
        return self.images.png(str(self.rows.row(key)["tar"]), key)

    def state(self) -> str:
        """A line about how far the run is."""
        if self.rows.stamp.sealed:
            return "finished"
        return f"not finished: {len(self.rows.frame):,} of {self.manifest.total:,} images so far"

    def _stamp(self) -> Stamp:
        measured = sum(1 for _ in self.store.files(FOLDER)), self.store.size_or_none(METRICS_PATH)
        shards = frozenset(committed_numbers(self.data, self.manifest.prefix))
        return Stamp(is_sealed(self.store) and is_sealed(self.data), shards, measured)

    def _read(self, progress: StageProgress = no_stage) -> Rows:
        stamp = self._stamp()  # before the rows, so that nothing that is added in between is missed
        if not stamp.shards:
            return Rows(pd.DataFrame({name: pd.Series(dtype="object") for name in ("key", "class_id", "tar")}), stamp)
        rows = read_rows(self.store, accepted=False, excluded=True, partial=True, progress=progress)
        return Rows(rows, stamp)
