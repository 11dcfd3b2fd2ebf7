"""Splits of a data set, told by the names of files and folders: ``train-00000.tar``, ``test/``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from rarefy.errors import DataError, bad

WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "t10k": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
WANTED = {"train": ("train",), "test": ("test", "validation")}
OTHER_SPLITS = "files and folders of other splits"


def split_of(name: str) -> str | None:
    """The split that a name begins with: train, test or validation."""
    word = re.match(r"[a-z0-9]+", name.lower())
    return WORDS.get(word.group()) if word else None


def group_by_split(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Paths by split; under ``""`` if no name says one. Raises DataError if only some names do."""
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(split_of(path.name) or "", []).append(path)
    if "" in groups and len(groups) > 1:
        split = next(name for name in groups if name)
        raise DataError(
            f"data: {str(groups[split][0])!r} belongs to the {split} split and {str(groups[''][0])!r} to none; "
            "name a split in all names or in none"
        )
    return groups


def choose_split(groups: Mapping[str, list[Path]], split: str, where: Path) -> str:
    """The group to read for a split (train or test). A data set's only split is what is read for train.

    Raises DataError if there is none.
    """
    if split not in WANTED:
        raise DataError(bad("split", split, "train or test"))
    for name in WANTED[split]:
        if name in groups:
            return name
    if split == "train" and len(groups) == 1:
        return next(iter(groups))
    has = ", ".join(name for name in groups if name) or "no splits"
    raise DataError(f"data: {str(where)!r} has no {split} split (it has {has})")
