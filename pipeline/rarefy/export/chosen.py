"""The images of a data set that are exported, and those that are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pandas as pd

from rarefy.audit.inputs.dataset import read_manifest
from rarefy.consume.exclusions import read_exclusions
from rarefy.consume.rows import read_rows
from rarefy.errors import DataError, ShardError, bad
from rarefy.manifest import Manifest
from rarefy.plan import data_store
from rarefy.shards.reader import iter_tar
from rarefy.shards.store import Store

ADVICE = "; run verify, then seal --repair"


class Image(NamedTuple):
    """One image. row: its place in the rows; png: the file, as the shard has it."""

    row: int
    key: str
    class_id: int
    png: bytes


@dataclass(frozen=True)
class LeftOut:
    """How many images are not exported: those on the exclusion list, those that [accept] rejected, and the others that
    the condition leaves out."""

    excluded: int
    not_accepted: int
    where: int

    def text(self) -> str:
        """What was left out and why, as the end of a sentence; empty if nothing was."""
        names = {"excluded": "on the exclusion list", "not_accepted": "not accepted", "where": "not matched by --where"}
        parts = [f"{count:,} {names[name]}" for name, count in asdict(self).items() if count]
        return f"; left out: {', '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class Chosen:
    """The images to export. rows: one each, by key, numbered from 0; data: where the shards are."""

    manifest: Manifest
    data: Store
    rows: pd.DataFrame
    left_out: LeftOut

    def images(self) -> Iterator[Image]:
        """The images, in the order of the shards. Raises ShardError for one that is not what its row says."""
        keys, classes, hashes = (self.rows[name].tolist() for name in ("key", "class_id", "image_sha256"))
        for tar, rows in sorted(self.rows.groupby("tar").indices.items()):
            wanted = {keys[row]: row for row in map(int, rows)}
            with self.data.local_copy(str(tar)) as path:
                for key, fields in iter_tar(path, str(tar)):
                    row = wanted.pop(key, None)
                    if row is None:
                        continue
                    if hashlib.sha256(fields["png"]).hexdigest() != hashes[row]:
                        raise ShardError(f"{tar}: the image of sample {key} is damaged{ADVICE}")
                    yield Image(row, key, classes[row], fields["png"])
            if wanted:
                raise ShardError(f"{tar}: it has no sample {min(wanted)}{ADVICE}")


def choose_images(store: Store, where: str | None, everything: bool) -> Chosen:
    """The accepted images of a sealed run that are not on its exclusion list, or every image.

    where: a condition that they must satisfy, too (see rarefy.consume.rows). Raises OutputError for a run that is not
    sealed, and DataError if no image is left.
    """
    manifest = read_manifest(store)
    offered = read_rows(store, accepted=not everything, excluded=everything)
    rows = offered if where is None else read_rows(store, where, accepted=not everything, excluded=everything)
    excluded = 0 if everything else len(read_exclusions(store))
    left_out = LeftOut(excluded, manifest.total - excluded - len(offered), len(offered) - len(rows))
    if rows.empty and where is not None:
        raise DataError(bad("where", where, f"a condition that any of the {len(offered):,} images satisfies"))
    if rows.empty:
        raise DataError(f"out: {store.root!r} has no images to export{left_out.text()}; --all exports them, too")
    return Chosen(manifest, data_store(store, manifest), rows, left_out)
