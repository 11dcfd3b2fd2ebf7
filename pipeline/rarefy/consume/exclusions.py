"""Reading and writing the exclusion list of a run (rarefy.shards.exclusions has its form)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rarefy.audit.inputs.dataset import read_manifest
from rarefy.errors import DataError, bad
from rarefy.plan import data_store
from rarefy.shards.exclusions import ALLOWED, EXCLUDED, KEY, read_lines
from rarefy.shards.store import Store, open_store


def read_exclusions(out: Store | str | Path) -> frozenset[str]:
    """The excluded keys of the run in ``out`` (a path, URL or Store); empty if there is no list.

    Raises DataError, which names file, line and value, for a line that is not a key.
    """
    store = open_store(out)
    return frozenset(read_lines(data_store(store, read_manifest(store))))


def write_exclusions(out: Store | str | Path, keys: Iterable[str]) -> None:
    """Replace the exclusion list of the run in ``out``, comments included. Without keys, the file is removed.

    Raises DataError for a malformed key; then nothing is written.
    """
    store = open_store(out)
    data, ordered = data_store(store, read_manifest(store)), sorted(set(keys))
    if wrong := next((key for key in ordered if not KEY.fullmatch(key)), None):
        raise DataError(bad("excluded", wrong, ALLOWED))
    if ordered:
        data.write_bytes(EXCLUDED, "".join(f"{key}\n" for key in ordered).encode())
    else:
        data.delete(EXCLUDED)
