"""Ties an audit to the shards that it measured, so that the audit of other shards is never shown as the run's."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from rarefy.audit.card import remove_audit
from rarefy.audit.inputs.dataset import read_manifest
from rarefy.audit.schema import (
    BOOTSTRAP_PATH,
    COPIES_PATH,
    GALLERY_PATH,
    METRICS_PATH,
    REPORT_PATH,
    SAMPLES_PATH,
    STRIPS_PATH,
    AuditResult,
    read_result,
)
from rarefy.errors import ShardError
from rarefy.plan import data_names, data_store, run_spec
from rarefy.shards.exclusions import read_lines
from rarefy.shards.index import INDEX, DataSetFiles, is_sealed
from rarefy.shards.listing import iter_committed
from rarefy.shards.store import Store


class _Hash:
    """A sink that hashes what is written to it."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes, /) -> None:
        self.sha256.update(data)


def shards_sha256(store: Store) -> str:
    """Identifies the data set's committed shards: the SHA-256 of the index.json that lists them and their hashes.

    Sealing or repairing a run without changing an image does not change it. Raises OutputError if there is no run.
    """
    manifest, index = read_manifest(store), _Hash()
    data = data_store(store, manifest)
    if is_sealed(data):
        return hashlib.sha256(data.read_bytes(INDEX)).hexdigest()
    files = DataSetFiles(run_spec(manifest), index, _Hash())
    for marker in iter_committed(data, data_names(manifest), manifest.digest):
        files.add(marker)
    files.end()
    return index.sha256.hexdigest()


def is_current(store: Store, result: AuditResult) -> bool:
    """Whether the audit is of the shards that are there now. Audits of earlier versions do not say and are accepted."""
    audited = result.provenance.shards_sha256
    return audited is None or audited == shards_sha256(store)


def read_current(store: Store) -> AuditResult:
    """The audit of the shards that are there now, with the exclusion list as it is now.

    Raises OutputError if there is no audit, ShardError for one of another format or of other shards.
    """
    result = read_result(store)
    if not is_current(store, result):
        raise ShardError(
            f"{store.root}/{METRICS_PATH}: out of date: the shards have changed since this audit; run audit again"
        )
    if result.provenance.shards_sha256 is None:
        return result  # of an earlier version
    excluded = len(read_lines(data_store(store, read_manifest(store))))
    return replace(result, provenance=replace(result.provenance, excluded=excluded))


def discard_audit(store: Store) -> None:
    """Delete an earlier audit's files, metrics.json first, and its part of the card."""
    for rel in (METRICS_PATH, REPORT_PATH, GALLERY_PATH, SAMPLES_PATH, BOOTSTRAP_PATH, STRIPS_PATH, COPIES_PATH):
        store.delete(rel)
    remove_audit(store)
