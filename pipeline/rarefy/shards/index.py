"""From committed shards to a data set: verify and seal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rarefy.errors import OutputError, ShardError, bad, first_names
from rarefy.shards.card import CardInfo, render_card
from rarefy.shards.claim import RUN_FILE, claim_output
from rarefy.shards.listing import committed
from rarefy.shards.marker import Marker, marker_path
from rarefy.shards.metadata import SCHEMA, parquet_path, tar_path
from rarefy.shards.store import Store
from rarefy.shards.verify import NOT_COMMITTED, verify

SUCCESS = "_SUCCESS"


@dataclass(frozen=True)
class Sealed:
    """shards, samples: their numbers; size_bytes: of all tars; counts: samples by class id."""

    shards: int
    samples: int
    size_bytes: int
    counts: Mapping[int, int]


def is_sealed(store: Store) -> bool:
    """Whether ``seal`` has completed."""
    return store.exists(SUCCESS)


def seal(
    store: Store, manifest_text: str, digest: str, names: Sequence[str], counts: Mapping[int, int], card: CardInfo
) -> Sealed:
    """Verify every shard and write index, listing, card and, last, ``_SUCCESS``.

    names: all shards of the plan; counts: the plan's samples by class id. The marker of a damaged shard is deleted, so
    that the next generate replaces the shard. Raises ShardError, which names missing or damaged shards or wrong counts.
    """
    if not store.exists(RUN_FILE):
        raise OutputError(bad("out", store.root, "a rarefy run"))
    claim_output(store, manifest_text, digest)
    try:
        markers = _whole_shards(store, digest, names)
        made = _checked_counts(markers.values(), counts)
    except ShardError:
        store.delete(SUCCESS)
        raise
    _write_json(store, "index.json", _wids_index(card.name, markers))
    _write_json(store, "metadata/_index.json", _metadata_listing(markers, made))
    store.write_bytes("README.md", render_card(card, made, names, digest).encode())
    for folder in ("", "state", "shards", "metadata"):
        store.sweep(folder)
    sealed = Sealed(len(markers), sum(made.values()), sum(marker.tar_bytes for marker in markers.values()), made)
    _write_json(store, SUCCESS, {"manifest_digest": digest, "shards": sealed.shards, "samples": sealed.samples})
    return sealed


def _whole_shards(store: Store, digest: str, names: Sequence[str]) -> dict[str, Marker]:
    if problems := verify(store, names, digest):
        raise ShardError(_take_back(store, problems))
    planned = {f"{name}.tar" for name in names}
    if strangers := [name for name in store.list("shards") if name not in planned]:
        raise ShardError(f"shards: {first_names(strangers)}: not part of this plan; move it elsewhere")
    return committed(store, names, digest)


def _take_back(store: Store, problems: Mapping[str, Sequence[str]]) -> str:
    """Delete the markers of damaged shards and return the message that names missing and damaged shards."""
    missing = [name for name, lines in problems.items() if NOT_COMMITTED in lines]
    damaged = [f"{name} ({lines[0]})" for name, lines in problems.items() if NOT_COMMITTED not in lines]
    for name in problems:
        store.delete(marker_path(name))
    parts = [f"{len(missing)} missing: {first_names(missing)}"] if missing else []
    if damaged:
        parts.append(f"{len(damaged)} damaged, markers deleted: {first_names(damaged)}")
    return f"shards: {'; '.join(parts)}; run generate again"


def _checked_counts(markers: Iterable[Marker], planned: Mapping[int, int]) -> dict[int, int]:
    total: Counter[int] = Counter()
    for marker in markers:
        total.update({int(class_id): number for class_id, number in marker.counts.items()})
    if total != Counter(planned):
        raise ShardError(f"counts: {dict(total)} images by class is not {dict(planned)}, as planned")
    return dict(sorted(total.items()))


def _wids_index(name: str, markers: Mapping[str, Marker]) -> dict[str, object]:
    shards = [
        {"url": tar_path(name), "md5sum": marker.tar_md5, "nsamples": marker.rows, "filesize": marker.tar_bytes}
        for name, marker in markers.items()
    ]
    return {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards}


def _metadata_listing(markers: Mapping[str, Marker], counts: Mapping[int, int]) -> dict[str, object]:
    columns = [{"name": field.name, "type": str(field.type), **_text(field.metadata)} for field in SCHEMA]
    shards = [
        {
            "name": name,
            "parquet": parquet_path(name),
            "tar": tar_path(name),
            "rows": marker.rows,
            "counts": marker.counts,
        }
        for name, marker in markers.items()
    ]
    total = sum(counts.values())
    return {"columns": columns, "total": total, "counts": {str(key): n for key, n in counts.items()}, "shards": shards}


def _text(metadata: Mapping[bytes, bytes]) -> dict[str, str]:
    return {key.decode(): value.decode() for key, value in metadata.items()}


def _write_json(store: Store, rel: str, table: Mapping[str, object]) -> None:
    store.write_bytes(rel, json.dumps(table, indent=1).encode() + b"\n")
