"""gallery.html: a few thousand images of a run in one file that loads nothing."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rarefy.audit.page.pictures import data_uri
from rarefy.errors import ShardError, first_names
from rarefy.generate.progress import StageProgress, no_stage
from rarefy.shards.store import Store
from rarefy.view.page import Page, render
from rarefy.view.run import Run
from rarefy.view.table import encode_table

MOST_IMAGES = 2_000
MOST_BYTES = 18 << 20  # of the images in the file
MOST_REMOTE_SHARDS = 64  # that are downloaded
SIDE = 128  # larger images become this small
SEED = 0
DROPPED, RAREST, AT_RANDOM = "dropped", "rarest", "at random"
HELP = "This file shows a part of the data set and changes nothing: rarefy view shows all of it and can drop images."

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Gallery:
    """page: the file; shown, total: numbers of images."""

    page: bytes
    shown: int
    total: int


@dataclass(frozen=True)
class _Choice:
    """Rows to show, the most wanted first, and why each was chosen."""

    places: list[int]
    reasons: dict[int, str]


def make_gallery(store: Store, progress: StageProgress = no_stage) -> Gallery:
    """The page. It shows the whole run if that is small, else the dropped, the rarest and random images.

    Raises ShardError if there are no images, or for damaged metadata; images that cannot be read are named on the page.
    """
    run = Run(store, progress)
    try:
        return _gallery(run, run.excluded())
    finally:
        run.images.close()


def _gallery(run: Run, excluded: frozenset[str]) -> Gallery:
    frame = run.rows.frame
    if not len(frame):
        raise ShardError(f"{run.data.root}: no shard is committed yet, so there are no images to show")
    choice = choose(frame, excluded, None if run.data.is_local else MOST_REMOTE_SHARDS)
    images, broken = _read(run, frame, choice.places)
    shown = sorted(within(images, choice.places, MOST_BYTES))
    notes = [_contents(shown, choice, len(frame), "rarity" in frame)]
    if broken:
        notes.append(f"{len(broken):,} images could not be read: {first_names(broken)}; run rarefy verify")
    table = encode_table(frame.iloc[shown], excluded, run.classes)
    data = {"table": base64.b64encode(table).decode(), "images": [images[place] for place in shown]}
    page = Page(run.manifest.name, run.state(), HELP, notes)
    return Gallery(render(page, live=False, data=data), len(shown), len(frame))


def choose(frame: pd.DataFrame, excluded: frozenset[str], most_shards: int | None) -> _Choice:
    """At most MOST_IMAGES rows from at most ``most_shards`` shards (None: any number).

    Up to a quarter are dropped images. Of the others, the rarest and random ones take turns.
    """
    dropped = np.flatnonzero(frame["key"].isin(list(excluded)))
    others = np.random.default_rng(SEED).permutation(np.setdiff1d(np.arange(len(frame)), dropped))
    turns = zip_longest(
        ((int(place), RAREST) for place in rarest(frame, others)), ((int(place), AT_RANDOM) for place in others)
    )
    marked = ((int(place), DROPPED) for place in dropped[: MOST_IMAGES // 4])
    wanted = (each for each in chain(marked, chain.from_iterable(turns)) if each is not None)
    tars, opened = frame["tar"].to_numpy(), set[str]()
    reasons: dict[int, str] = {}
    for place, reason in wanted:
        if len(reasons) == MOST_IMAGES:
            break
        if most_shards is None or tars[place] in opened or len(opened) < most_shards:
            opened.add(tars[place])
            reasons.setdefault(place, reason)
    return _Choice(list(reasons), reasons)


def rarest(frame: pd.DataFrame, places: Places) -> Places:
    """These rows, rarest first: by rarity, images within the real data only; without it, by confidence."""
    rows = frame.iloc[places]
    if "rarity" in frame:
        order, known = (
            -rows["rarity"].to_numpy(np.float64, na_value=np.nan),
            rows["inside"].fillna(False).to_numpy(bool),
        )
    elif "confidence" in frame:
        order = rows["confidence"].to_numpy(np.float64, na_value=np.nan)
        known = ~np.isnan(order)
    else:
        return places[:0]
    ranked = np.argsort(order, kind="stable")
    found: Places = places[ranked[known[ranked]]]
    return found


def within(images: dict[int, str], places: Sequence[int], most_bytes: int) -> list[int]:
    """The first places whose images, as long as they are in the file, have at most ``most_bytes`` together."""
    readable = [place for place in places if place in images]
    ends = np.cumsum([len(images[place]) for place in readable])
    return readable[: int(np.searchsorted(ends, most_bytes, side="right"))]


def _read(run: Run, frame: pd.DataFrame, places: Sequence[int]) -> tuple[dict[int, str], list[str]]:
    """The images by row as data URIs, and the keys of those that cannot be read."""
    keys, tars = frame["key"].to_numpy(), frame["tar"].to_numpy()
    images, broken = dict[int, str](), list[str]()
    for place in sorted(places, key=lambda place: (tars[place], place)):
        try:
            images[place] = data_uri(run.images.png(tars[place], keys[place]), SIDE)
        except (ShardError, OSError, ValueError, SyntaxError):  # what Pillow raises for a damaged file
            broken.append(str(keys[place]))
    return images, broken


def _contents(shown: Sequence[int], choice: _Choice, total: int, measured: bool) -> str:
    """What the page shows of the data set, in a line."""
    if len(shown) == total:
        return f"All {total:,} images."
    counts = Counter(choice.reasons[place] for place in shown)
    rarest_by = "rarest within the real data" if measured else "with the lowest confidence"
    names = {DROPPED: "dropped", RAREST: rarest_by, AT_RANDOM: "at random"}
    parts = ", ".join(f"{counts[reason]:,} {name}" for reason, name in names.items() if counts[reason])
    return f"{len(shown):,} of {total:,} images: {parts}."
