"""One row per image of a data set: metadata, rarity, copy ratio. Needs neither torch nor Ray."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa

from rarefy.audit.current import read_current
from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.rarity.table import read_part
from rarefy.audit.schema import METRICS_PATH, SAMPLES_PATH
from rarefy.audit.tables import read_rows as read_audit_rows
from rarefy.consume.where import matching
from rarefy.errors import DataError, OutputError, ShardError, bad, first_names
from rarefy.generate.progress import StageProgress, no_stage
from rarefy.manifest import Manifest
from rarefy.plan import data_names, data_store, shard_name
from rarefy.shards.check import sha256_of
from rarefy.shards.exclusions import place, read_lines
from rarefy.shards.index import is_sealed
from rarefy.shards.listing import iter_committed
from rarefy.shards.marker import Marker, read_committed
from rarefy.shards.metadata import parquet_path, parse_table, tar_path
from rarefy.shards.reader import json_object
from rarefy.shards.store import Store, open_store

T = TypeVar("T")
R = TypeVar("R")
RARITY = ("rarity", "inside", "avgknn", "nearest_distance", "nearest_real")
COPY_RATIO = "copy_ratio"
TAR = "tar"
THREADS = 4  # for object stores, where most time is spent waiting
BATCH = 256  # shards that wait for a thread at a time


def read_rows(
    out: Store | str | Path,
    where: str | None = None,
    *,
    accepted: bool = True,
    excluded: bool = False,
    partial: bool = False,
    progress: StageProgress = no_stage,
) -> pd.DataFrame:
    """The images of the data set of the run in ``out`` (a path, URL or Store), one row each, sorted by key.

    Columns: those of metadata/*.parquet; ``tar``, the shard's path in the data set's folder; ``rarity``, ``inside``,
    ``avgknn``, ``nearest_distance`` and ``nearest_real`` where OUT/rarity has them; ``copy_ratio`` where there is an
    audit of these shards, NaN for images that it did not measure.
    where: a condition on these columns (rarefy.consume.where). accepted: leave out images that [accept] rejected.
    excluded: keep the images of the exclusion list, too. partial: also read a run that is not sealed yet; then rows
    may lack rarity. progress(stage, done, total): of shards.
    Raises OutputError if there is no sealed run, ShardError for damage, and DataError for a bad condition or list.
    """
    store = open_store(out)
    manifest = read_manifest(store)
    data = data_store(store, manifest)
    if not partial and not (is_sealed(store) and is_sealed(data)):
        raise OutputError(bad("out", store.root, "a finished run: it has no _SUCCESS; wait for it or run seal"))
    markers = _markers(data, manifest, partial)
    rows = _metadata(data, markers, progress)
    measured = _rarity(store, manifest, rows, {each.name: each for each in markers}, progress)
    rows, absent = _with_rarity(rows, measured, partial)
    rows, absent_ratio = _with_copy_ratio(store, rows)
    lines = {} if excluded else read_lines(data)
    if not partial:
        _check_listed(data, lines, rows)
    keep = ~rows["key"].isin(list(lines))
    if accepted:
        keep &= rows["accepted"]
    if where is not None:
        keep &= matching(rows, where, absent | absent_ratio)
    return rows[keep].sort_values("key", ignore_index=True)


def _markers(data: Store, manifest: Manifest, partial: bool) -> list[Marker]:
    """The markers of all shards. Raises ShardError if one is missing or damaged, unless the run goes on."""
    markers = list(iter_committed(data, data_names(manifest), manifest.digest))
    if not partial:
        found = {marker.name for marker in markers}
        if missing := [name for name in data_names(manifest) if name not in found]:
            raise ShardError(f"shards: {len(missing)} have no readable marker: {first_names(missing)}; run verify")
    return markers


def _metadata(data: Store, markers: Sequence[Marker], progress: StageProgress) -> pd.DataFrame:
    """The rows of all shards, each compared with the hash in its marker. Raises ShardError."""

    def read(marker: Marker) -> pa.Table:
        rel = parquet_path(marker.name)
        content = data.read_or_none(rel)
        if content is None or sha256_of(content) != marker.parquet_sha256:
            raise ShardError(f"{rel}: {'missing' if content is None else 'damaged'}; run verify, then seal --repair")
        table = parse_table(io.BytesIO(content), rel).replace_schema_metadata()
        return table.append_column(TAR, pa.array([tar_path(marker.name)] * len(table), pa.string()))

    tables = list(_each(read, markers, "reading metadata", progress))
    if not tables:
        raise ShardError(f"{data.root}: no shard is committed yet")
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return frame


def _rarity(
    store: Store, manifest: Manifest, rows: pd.DataFrame, markers: dict[str, Marker], progress: StageProgress
) -> dict[str, pa.Table | None]:
    """What OUT/rarity has of each shard of the pool that the rows are from.

    A file counts only if it is whole and was measured on the shard that is there now.
    """

    def read(name: str) -> pa.Table | None:
        marker = markers.get(name) if manifest.select is None else read_committed(store, name, manifest.digest)
        with suppress(ShardError, ValueError):
            part = read_part(store, name)
            if marker is not None and json_object(part.basis).get("tar_sha256") == marker.tar_sha256:
                return part.table.select(["key", *RARITY])
        return None

    names = [shard_name(manifest.prefix, shard) for shard in sorted(set(rows["shard"].tolist()))]
    return dict(zip(names, _each(read, names, "reading rarity", progress), strict=True))


def _with_rarity(
    rows: pd.DataFrame, found: dict[str, pa.Table | None], partial: bool
) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows with the columns of OUT/rarity, or why there are none. found: by shard."""
    tables = [table for table in found.values() if table is not None]
    lacking = [name for name, table in found.items() if table is None]
    if not tables or (lacking and not partial):
        why = f"OUT/rarity has no current file for {first_names(lacking)}; run audit"
        return rows, dict.fromkeys(RARITY, why)
    measured = pa.concat_tables(tables).replace_schema_metadata().to_pandas()
    if lacking:
        measured = measured.astype({"inside": "boolean"})  # it has no value for some images
    return rows.merge(measured, how="left", on="key", validate="1:1"), {}


def _with_copy_ratio(store: Store, rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows with the audit's copy ratio, or why there is none."""
    if not store.exists(METRICS_PATH):
        return rows, {COPY_RATIO: "there is no audit; run audit"}
    try:
        read_current(store)
    except ShardError as error:
        return rows, {COPY_RATIO: str(error)}
    ratios = {row["key"]: row[COPY_RATIO] for row in read_audit_rows(store, SAMPLES_PATH)}
    return rows.assign(**{COPY_RATIO: rows["key"].map(ratios).astype("float64")}), {}


def _check_listed(data: Store, lines: dict[str, int], rows: pd.DataFrame) -> None:
    """Raise DataError for a key of the exclusion list that the data set does not have."""
    known = set(rows["key"])
    if key := next((key for key in lines if key not in known), None):
        raise DataError(bad(f"{place(data)} line {lines[key]}", key, "a key of this data set; delete the line"))


def _each(read: Callable[[T], R], places: Sequence[T], stage: str, progress: StageProgress) -> Iterator[R]:
    """The results in order, read by a few threads."""
    each = iter(places)
    with ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(places), BATCH):
            for number, result in enumerate(pool.map(read, islice(each, BATCH)), first):
                progress(stage, number, len(places))
                yield result
