"""From committed shards to a data set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from rarefy.errors import NAMES_SHOWN, ShardError, first_names
from rarefy.shards.card import CardInfo, Contents, render_card
from rarefy.shards.check import NOT_COMMITTED, Checked, sha256_of
from rarefy.shards.claim import check_claim
from rarefy.shards.index import FORMER_LISTING, INDEX, LISTING, SUCCESS, DataSetFiles, is_sealed, success_table
from rarefy.shards.marker import marker_path
from rarefy.shards.metadata import parquet_path, tar_path
from rarefy.shards.spec import RunSpec
from rarefy.shards.store import Store
from rarefy.shards.verify import CARD, STRANGE, Progress, check_shards, strangers
from rarefy.shards.writer import take_back


@dataclass(frozen=True)
class Sealed:
    """shards, samples: their numbers; size_bytes: of all tars; counts: samples by class id.

    not_accepted: samples that were kept although no candidate passed the manifest's [accept].
    """

    shards: int
    samples: int
    size_bytes: int
    counts: Mapping[int, int]
    not_accepted: int = 0


@dataclass
class _Found:
    """What a check of all shards found.

    missing: the first names of shards that are not committed, missing_shards: how many there are; damaged: shards that
    are, but with problems.
    """

    missing: list[str] = field(default_factory=list)
    missing_shards: int = 0
    damaged: list[Checked] = field(default_factory=list)
    size_bytes: int = 0
    weights: tuple[str, str | None] | None = None
    beyond_limit: int = 0
    not_accepted: int = 0

    def add(self, checked: Checked) -> None:
        if NOT_COMMITTED in checked.problems:
            self.missing_shards += 1
            if len(self.missing) < NAMES_SHOWN:
                self.missing.append(checked.name)
        elif checked.problems:
            self.damaged.append(checked)
        elif checked.marker is not None:
            self.size_bytes += checked.marker.tar_bytes
            self.weights = self.weights or checked.weights
            self.beyond_limit += checked.beyond_limit
            self.not_accepted += checked.not_accepted


def seal(store: Store, run: RunSpec, card: CardInfo, repair: bool = False, progress: Progress | None = None) -> Sealed:
    """Check every shard and write index, listing, card and, last, ``_SUCCESS``.

    repair: withdraw damaged shards: ``_SUCCESS`` is deleted first and then their markers, so that the next generate
    makes them again. Without it nothing is changed unless every shard is intact. progress(done, total): of the check.
    Raises ShardError, which names missing and damaged shards and files that are not part of the plan, and OutputError
    if the store cannot be written.
    """
    check_claim(store, run.digest)
    return seal_set(store, run, card, repair, progress)


def seal_set(
    store: Store, run: RunSpec, card: CardInfo, repair: bool = False, progress: Progress | None = None
) -> Sealed:
    """As ``seal``, for a set that is part of a run and has no claim of its own."""
    store.check_writable()
    with ExitStack() as stack:
        # The files get their names at the end of this block, and only if it succeeds.
        index, listing = (stack.enter_context(store.staged(rel)).open("wb") for rel in (INDEX, LISTING))
        files = DataSetFiles(run, stack.enter_context(index), stack.enter_context(listing))
        found = _write_index(check_shards(store, run, progress=progress), files)
        foreign = list(strangers(store, run))
        if found.missing_shards or found.damaged or foreign:
            raise ShardError(_refuse(store, run, found, foreign, repair))
    store.delete(FORMER_LISTING)
    store.write_bytes(CARD, render_card(card, _contents(run, found), run.digest).encode())
    for folder in ("", "state", "shards", "metadata", "rarity", "audit"):
        store.sweep(folder)
    store.write_bytes(SUCCESS, json.dumps(success_table(run), indent=1).encode() + b"\n")
    counts = dict(sorted(run.counts.items()))
    return Sealed(len(run.shards), sum(counts.values()), found.size_bytes, counts, found.not_accepted)


def _write_index(every: Iterable[Checked], files: DataSetFiles) -> _Found:
    found = _Found()
    for checked in every:
        found.add(checked)
        if checked.marker is not None:
            files.add(checked.marker)
    files.end()
    return found


def _contents(run: RunSpec, found: _Found) -> Contents:
    assert found.weights is not None, "every shard is intact"
    return Contents(
        counts=run.counts,
        shards=(run.shards[0].name, run.shards[-1].name),
        num_shards=len(run.shards),
        weights=found.weights,
        beyond_limit=found.beyond_limit,
        not_accepted=found.not_accepted,
    )


def _refuse(store: Store, run: RunSpec, found: _Found, foreign: list[str], repair: bool) -> str:
    """The message that says why a run is not sealed; ``repair`` withdraws the damaged shards first."""
    parts = []
    if found.missing_shards:
        more = found.missing_shards - len(found.missing)
        names = ", ".join(found.missing) + (f" and {more} more" if more else "")
        parts.append(f"{found.missing_shards} missing: {names}")
    if found.damaged:
        names = first_names([f"{checked.name} ({checked.problems[0]})" for checked in found.damaged])
        parts.append(f"{len(found.damaged)} damaged: {names}")
    if foreign:
        parts.append(f"{first_names(foreign)}: {STRANGE}")
    if repair and (found.missing_shards or found.damaged):
        parts.append(_withdraw(store, found.damaged, f"run {run.made_by} again"))
    elif found.damaged:
        kept = ", _SUCCESS included" if is_sealed(store) else ""
        parts.append(
            f"nothing was changed{kept}; seal --repair withdraws damaged shards, so that generate can make them"
        )
    elif found.missing_shards:
        parts.append(f"run {run.made_by} again")
    return f"shards: {'; '.join(parts)}"


def _withdraw(store: Store, damaged: Sequence[Checked], advice: str) -> str:
    """Unseal the run, then withdraw damaged shards, and say so.

    In this order, because a run must not look complete while shards are withdrawn, whenever this is interrupted.
    """
    unsealed = ["_SUCCESS deleted"] if is_sealed(store) else []
    store.delete(SUCCESS)
    withdrawn = sum(_withdraw_shard(store, checked) for checked in damaged)
    markers = [f"{withdrawn} markers of damaged shards deleted"] if damaged else []
    return "; ".join((*unsealed, *markers, advice))


def _withdraw_shard(store: Store, checked: Checked) -> bool:
    """Delete a shard's wrong files and its marker; returns whether the marker was there.

    A marker that has changed since it was judged is another attempt's, and stays with its files. Files that are whole
    but not the plan's go as well: the next attempt would adopt them.
    """
    data = store.read_or_none(marker_path(checked.name))
    if data is None or sha256_of(data) != checked.judged:
        return False
    if checked.contradicts_plan and checked.marker is not None:
        store.withdraw(tar_path(checked.name), checked.marker.tar_sha256)
        store.withdraw(parquet_path(checked.name), checked.marker.parquet_sha256)
    take_back(store, checked.name, data)
    return True
