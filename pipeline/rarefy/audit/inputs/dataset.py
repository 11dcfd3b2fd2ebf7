"""Reads a run for the audit: all metadata, and the images of evenly spaced shards.

Whatever cannot be read is left out and listed as a problem, so that the rest is not mistaken for the whole run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rarefy.errors import ManifestError, OutputError, ShardError, bad, near_path
from rarefy.manifest import Manifest, parse_unread_manifest
from rarefy.models.run_model import RunModel, read_run_model
from rarefy.plan import RECORD, data_names, data_store, kept_plan
from rarefy.shards.claim import MANIFEST_FILE, MODEL_FILE
from rarefy.shards.exclusions import read_lines
from rarefy.shards.index import is_sealed
from rarefy.shards.listing import iter_committed
from rarefy.shards.marker import Marker, hash_file
from rarefy.shards.metadata import parquet_path, read_table, tar_path
from rarefy.shards.reader import decode_image, iter_tar
from rarefy.shards.store import Store

COLUMNS: dict[str, type] = {
    "key": str, "class_id": np.int64, "predicted_id": np.int64, "confidence": np.float64, "entropy": np.float64,
    "accepted": np.bool_, "candidate": np.int64,
}  # fmt: skip
WEIGHTS = ("checkpoint_sha256", "classifier_sha256")
NAMED_PER_SHARD = 8  # problems of one shard that are listed one by one


@dataclass(frozen=True)
class Problem:
    """A part of the run that was left out. where: a key, a file or a class."""

    where: str
    what: str


@dataclass(frozen=True)
class Rows:
    """Columns of N samples, in the run's order.

    confidence: p(class) in [0, 1]; entropy: in nats; candidate: number of rejected draws before this one. Without a
    classifier, confidence and entropy are NaN and predicted_id is -1.
    """

    key: NDArray[np.str_]
    class_id: NDArray[np.int64]
    predicted_id: NDArray[np.int64]
    confidence: NDArray[np.float64]
    entropy: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    candidate: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.key)

    def take(self, rows: NDArray[np.int64]) -> Rows:
        return Rows(*(getattr(self, column)[rows] for column in COLUMNS))


@dataclass(frozen=True)
class RunData:
    """rows: all committed samples; measured: those whose images, uint8 (N, C, H, W), are compared with real ones.

    parts: the slice of each shard in images; weights: sha256 of the diffusion model's and the classifier's weights
    (None without a classifier); complete: the data set is sealed; problems: what had to be left out; judged: the class
    of each measured image by the model's judge, None until it is known or without one; filled: images that are not
    acceptable to [select]; excluded: keys on the exclusion list.
    """

    manifest: Manifest
    rows: Rows
    measured: Rows
    images: NDArray[np.uint8]
    parts: tuple[slice, ...]
    weights: tuple[str, str | None]
    complete: bool
    problems: tuple[Problem, ...]
    judged: NDArray[np.int64] | None = None
    filled: int = 0
    excluded: int = 0

    @property
    def scored(self) -> bool:
        """Whether a classifier scored the samples."""
        return self.manifest.preset.classifier is not None

    def keep(self, rows: NDArray[np.int64]) -> RunData:
        """The same run with only these measured images, and without ``parts``."""
        judged = None if self.judged is None else self.judged[rows]
        return replace(self, measured=self.measured.take(rows), images=self.images[rows], parts=(), judged=judged)


@dataclass(frozen=True)
class _Shard:
    table: pa.Table
    images: NDArray[np.uint8]


def read_manifest(store: Store) -> Manifest:
    """The run's own manifest, read without importing code that it names. Raises OutputError if there is no run."""
    source = f"{store.root}/{MANIFEST_FILE}"
    content = store.read_or_none(MANIFEST_FILE)
    if content is None:
        raise OutputError(bad("out", store.root, f"a rarefy run: it has no {MANIFEST_FILE}{near_path(store.root)}"))
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ManifestError(bad("manifest", source, "a readable TOML file: not UTF-8")) from None
    run = RunModel(None)
    if store.exists(MODEL_FILE):
        run = read_run_model(store.read_bytes(MODEL_FILE), f"{store.root}/{MODEL_FILE}")
    return parse_unread_manifest(text, source, run)


def read_run(store: Store, limit: int) -> RunData:
    """Read a run's rows and the images of at most ``limit`` samples; with [select], only those that were chosen.

    Every shard has all classes in proportion, so evenly spaced shards represent the run. Damaged shards and samples
    that contradict their metadata are left out and listed. Raises ShardError if nothing can be read.
    """
    manifest = read_manifest(store)
    data = data_store(store, manifest)
    unreadable: list[Problem] = []
    tables = _read_tables(data, iter_committed(data, data_names(manifest), manifest.digest), unreadable)
    if not tables and not unreadable:
        needed = "generate" if manifest.select is None else "select"
        raise ShardError(f"{data.root}: no committed shard of its manifest; run {needed} first")
    problems = _missing(manifest, len(tables) + len(unreadable)) + unreadable
    chosen = _spread(list(tables), [table.num_rows for table in tables.values()], limit)
    shards = {name: _read_images(data, name, tables[name], manifest, problems) for name in chosen}
    whole = {name: shard for name, shard in shards.items() if shard is not None}
    if not whole:
        listed = "; ".join(f"{problem.where}: {problem.what}" for problem in problems[:NAMED_PER_SHARD])
        raise ShardError(f"{data.root}: no shard can be read ({listed})")
    # If a shard turns out to be damaged, its rows are left out as well.
    read = {name: shard.table for name, shard in whole.items()}
    rows = [read.get(name, table) for name, table in tables.items() if name in read or name not in shards]
    measured = _rows(pa.concat_tables(read.values()))
    images = np.concatenate([shard.images for shard in whole.values()])
    cut = np.arange(min(limit, len(measured)))
    first = next(iter(read.values())).slice(0, 1).to_pylist()[0]
    return RunData(
        manifest=manifest,
        rows=_rows(pa.concat_tables(rows)),
        measured=measured.take(cut),
        images=images[: len(cut)],
        parts=_parts([len(shard.images) for shard in whole.values()], len(cut)),
        weights=(first[WEIGHTS[0]], first[WEIGHTS[1]]),
        complete=is_sealed(store) and is_sealed(data),
        problems=tuple(problems),
        filled=0 if manifest.select is None else _count_filled(data),
        excluded=len(read_lines(data)),
    )


def _count_filled(selected: Store) -> int:
    """The number that the record of a selection names."""
    data = selected.read_or_none(RECORD)
    try:
        return 0 if data is None else int(json.loads(data)["filled"])
    except (ValueError, LookupError, TypeError) as cause:
        raise ShardError(f"{selected.root}/{RECORD}: not the record of a selection; run select again") from cause


def _missing(manifest: Manifest, committed_shards: int) -> list[Problem]:
    planned = kept_plan(manifest).num_shards
    if committed_shards == planned:
        return []
    return [Problem("state", f"{planned - committed_shards} of {planned} shards are not committed")]


def _read_tables(store: Store, markers: Iterable[Marker], problems: list[Problem]) -> dict[str, pa.Table]:
    """The table of each shard; one problem for each that cannot be read."""
    tables = {}
    for marker in markers:
        name = marker.name
        try:
            # The size reveals a truncated tar without reading the shards that are not measured.
            if (size := store.size(tar_path(name))) != marker.tar_bytes:
                raise ShardError(f"{size} bytes, but its marker says {marker.tar_bytes}: truncated or replaced")
            if store.size_or_none(parquet_path(name)) is None:
                raise ShardError(f"{parquet_path(name)} is missing")
            with store.local_copy(parquet_path(name)) as path:
                if hash_file(path).sha256 != marker.parquet_sha256:
                    raise ShardError(f"{parquet_path(name)} does not have the sha256 that its marker says")
                tables[name] = read_table(path).select([*COLUMNS, *WEIGHTS, "image_sha256"])
        except (ShardError, OutputError) as error:
            problems.append(Problem(tar_path(name), f"left out: {error}"))
    return tables


def _read_images(
    store: Store, name: str, table: pa.Table, manifest: Manifest, problems: list[Problem]
) -> _Shard | None:
    """A shard's images in the table's order, without samples that contradict their rows; None if it is damaged."""
    rows = {key: place for place, key in enumerate(table["key"].to_pylist())}
    classes, hashes = table["class_id"].to_pylist(), table["image_sha256"].to_pylist()
    shape = (manifest.preset.channels, manifest.preset.image_size, manifest.preset.image_size)
    images: dict[int, NDArray[np.uint8]] = {}
    wrong: list[Problem] = []
    try:
        with store.local_copy(tar_path(name)) as path:
            for key, fields in iter_tar(path, name):
                place = rows.get(key)
                what = "no row of metadata" if place is None else _contradiction(fields, classes[place], hashes[place])
                image = None if what else _decode(fields["png"])
                if image is not None and image.shape != shape:
                    what = f"the image has shape {image.shape}, not {shape}"
                if what or image is None or place is None:
                    wrong.append(Problem(f"{tar_path(name)} {key}", what or "the image cannot be decoded"))
                else:
                    images[place] = image
    except (ShardError, OutputError) as error:
        problems.append(Problem(tar_path(name), f"left out: {error}"))
        return None
    listed = {problem.where.split()[-1] for problem in wrong}
    absent = [key for key, place in rows.items() if place not in images and key not in listed]
    wrong += [Problem(f"{parquet_path(name)} {key}", "row without an image in the tar") for key in absent]
    problems += wrong[:NAMED_PER_SHARD]
    if len(wrong) > NAMED_PER_SHARD:
        problems.append(Problem(tar_path(name), f"{len(wrong) - NAMED_PER_SHARD} more samples were left out"))
    kept = sorted(images)
    return _Shard(table.take(kept), np.stack([images[place] for place in kept])) if kept else None


def _contradiction(fields: dict[str, bytes], class_id: int, sha256: str) -> str:
    """How a sample's files contradict its row; empty if they agree."""
    if fields["cls"] != str(class_id).encode():
        return f".cls is {fields['cls'][:20]!r}, but its row says class {class_id}"
    if hashlib.sha256(fields["png"]).hexdigest() != sha256:
        return "the image's sha256 is not the one in its row"
    return ""


def _decode(png: bytes) -> NDArray[np.uint8] | None:
    try:
        return decode_image(png)
    except (OSError, ValueError, SyntaxError):  # what Pillow raises for a damaged file
        return None


def _parts(lengths: list[int], total: int) -> tuple[slice, ...]:
    ends = np.minimum(np.cumsum(lengths), total).tolist()
    starts = [0, *ends[:-1]]
    return tuple(slice(start, end) for start, end in zip(starts, ends, strict=True) if end > start)


def _spread(names: list[str], counts: list[int], limit: int) -> list[str]:
    """Evenly spaced shards with at least ``limit`` rows together, or all shards."""
    if sum(counts) <= limit:
        return names
    count = min(len(names), -(-limit // max(1, min(counts))))
    return [names[place] for place in np.unique(np.linspace(0, len(names) - 1, count).round().astype(int))]


def _rows(table: pa.Table) -> Rows:
    return Rows(**{name: _column(table[name]).astype(kind) for name, kind in COLUMNS.items()})


def _column(column: pa.ChunkedArray) -> NDArray[Any]:
    """The values; null becomes NaN, or -1 for whole numbers."""
    if pa.types.is_integer(column.type):
        column = column.fill_null(-1)
    values: NDArray[Any] = column.to_numpy()
    return values
