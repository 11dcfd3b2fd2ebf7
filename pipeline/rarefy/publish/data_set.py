"""The files of a run's data set: everything that a downloaded copy needs to be read, looked at and verified."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rarefy.audit.current import is_current
from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.schema import METRICS_PATH, read_result
from rarefy.errors import OutputError, ShardError, bad, first_names
from rarefy.generate.progress import StageProgress, no_stage
from rarefy.models.remote import is_remote
from rarefy.plan import RECORD, data_names, data_store
from rarefy.publish.card import UNKNOWN_LICENCE, check_card
from rarefy.publish.content import Content, ordered
from rarefy.publish.files import PushFile, made, stored, walk
from rarefy.shards.claim import MANIFEST_FILE, MODEL_FILE, RUN_FILE
from rarefy.shards.exclusions import EXCLUDED
from rarefy.shards.index import INDEX, LISTING, SUCCESS, is_sealed
from rarefy.shards.listing import iter_committed
from rarefy.shards.marker import marker_path
from rarefy.shards.metadata import parquet_path, tar_path
from rarefy.shards.store import Store
from rarefy.shards.verify import CARD
from rarefy.stages import verify_run

if TYPE_CHECKING:
    from rarefy.manifest import Manifest

TOP = (EXCLUDED, "sample.png", "gallery.html", RECORD)  # if they are there
FOLDERS = ("metadata", "rarity", "audit")  # whole, if they are there
LAST = (LISTING, INDEX, CARD, SUCCESS)
OWN = (*TOP, *LAST, *(f"{folder}/*" for folder in ("shards", "state", *FOLDERS)))
REAL_IMAGES_IN = "audit/ shows some of the real images that the set was compared with"


def data_set_content(store: Store, progress: StageProgress = no_stage) -> Content:
    """The data set of a run: OUT, or with [select], OUT/selected with the run's manifest and audit.

    Raises OutputError unless it is sealed and every file has its hash.
    """
    _check(store, progress)
    manifest = read_manifest(store)
    data = data_store(store, manifest)
    files = {file.path: file for file in _files(store, data, manifest)}
    card = data.read_bytes(CARD).decode()
    licence = check_card(card, "dataset", list(files))
    notes = list(_notes(store, set(files)))
    if licence is None:
        notes.insert(0, f"{UNKNOWN_LICENCE}; name it in the model folder's README.md and seal again, or in this one")
    left_out = sorted({path.split("/")[0] for path in walk(data)} - {path.split("/")[0] for path in files})
    return Content(
        kind="dataset",
        name=manifest.name,
        files=ordered(list(files.values()), LAST),
        card=card,
        own=OWN,
        mark=MANIFEST_FILE,
        left_out=tuple(f"{name}: not part of the data set" for name in left_out),
        notes=tuple(notes),
    )


def _check(store: Store, progress: StageProgress) -> None:
    """Raise OutputError for a run that is not sealed or not what its hashes say."""
    if not is_sealed(store):
        raise OutputError(bad("out", store.root, f"sealed; run rarefy seal {store.root} first"))
    if problems := verify_run(store, progress):
        names = first_names([f"{name} ({lines[0]})" for name, lines in problems.items()])
        raise OutputError(f"out: {store.root} has damaged or missing files, and nothing was sent: {names}")


def _files(store: Store, data: Store, manifest: Manifest) -> Iterator[PushFile]:
    """store: the run's; data: the data set's, which is another one with [select]."""
    yield stored(store, MANIFEST_FILE)
    if store.exists(MODEL_FILE):
        yield made(MODEL_FILE, without_place(store.read_bytes(MODEL_FILE)))
    if manifest.select is None:
        yield stored(store, RUN_FILE)
    for marker in iter_committed(data, data_names(manifest), manifest.digest):
        yield stored(data, marker_path(marker.name))
        yield PushFile(tar_path(marker.name), marker.tar_bytes, (data, tar_path(marker.name)), marker.tar_sha256)
        rel = parquet_path(marker.name)
        yield PushFile(rel, marker.parquet_bytes, (data, rel), marker.parquet_sha256)
    known = {parquet_path(name) for name in data_names(manifest)}
    for folder in FOLDERS:
        source = store if folder == "audit" else data
        yield from (stored(source, rel) for rel in walk(source, folder) if rel not in known)
    yield from (stored(data, rel) for rel in (*TOP, *LAST) if data.exists(rel))


def without_place(model: bytes) -> bytes:
    """``model.json`` with the name of a local model folder in place of its whole path, which is nobody's business."""
    content = json.loads(model)
    if "where" in content and not is_remote(content["where"]):
        content["where"] = Path(content["where"]).name
    return json.dumps(content, indent=1).encode() + b"\n"


def _notes(store: Store, paths: set[str]) -> Iterator[str]:
    if EXCLUDED in paths:
        yield f"{EXCLUDED} goes along, and rarefy.consume honours it; other readers of the set see those images"
    if not store.exists(METRICS_PATH):
        yield "not audited: the card says so"
        return
    try:
        current = is_current(store, read_result(store))
    except ShardError:
        current = False
    yield REAL_IMAGES_IN if current else "audit/ is not of these shards; run rarefy audit again"
