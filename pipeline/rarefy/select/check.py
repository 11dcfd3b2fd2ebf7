"""Checks that a selected set follows from its pool. Writes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rarefy.errors import ShardError, StorageError
from rarefy.plan import RECORD, SELECTED, data_store
from rarefy.select.choice import choose
from rarefy.select.spec import CopySpecs, SelectedSpecs, selected_spec
from rarefy.shards.index import SUCCESS, is_sealed
from rarefy.shards.store import Store
from rarefy.shards.verify import verify

if TYPE_CHECKING:
    # Importing it at run time would load torch into every process that only checks shards.
    from rarefy.manifest import Manifest


def verify_selected(store: Store, manifest: Manifest) -> dict[str, list[str]]:
    """Problems of OUT/selected by shard name or file, each with the folder's name; empty if there are none.

    The choice is made again from the pool's metadata and rarity, and every selected sample must be the pool's.
    """
    selected = data_store(store, manifest)
    if not is_sealed(selected):
        return {f"{SELECTED}/{SUCCESS}": ["missing: the images are not selected yet; run select"]}
    try:
        choice = choose(store, manifest)
        problems = verify(selected, selected_spec(manifest, SelectedSpecs(store, manifest, choice)))
    except StorageError:
        raise  # it says nothing about the set
    except ShardError as error:
        return {SELECTED: [f"cannot be compared with the pool: {error}"]}
    if selected.read_or_none(RECORD) != choice.record(manifest):
        problems[RECORD] = ["does not describe the choice that follows from the pool; run select again"]
    return {f"{SELECTED}/{name}": lines for name, lines in problems.items()}


def verify_copy(copy: Store, manifest: Manifest) -> dict[str, list[str]]:
    """Problems by shard name or file of a selected set without its pool; empty if there are none.

    Every file is compared with its hash, and every sample with the plan of the pool. Whether the pool has rarer ones
    cannot be seen here.
    """
    if not is_sealed(copy):
        return {SUCCESS: ["missing: the copy is not complete; download it again"]}
    try:
        return verify(copy, selected_spec(manifest, CopySpecs(copy, manifest)))
    except StorageError:
        raise  # it says nothing about the set
    except ShardError as error:
        return {"metadata": [str(error)]}
