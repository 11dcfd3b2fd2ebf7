"""Which real images count as the tail: the rarest, those with the lowest confidence, or the user's own list."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.metrics.neighbors import Bools, Labelled, Manifold
from rarefy.errors import DataError, ManifestError, bad, near_path

TAIL_SHARE = 0.2
RULES = ("avgknn", "confidence")


@dataclass(frozen=True)
class Tail:
    """members (M,): True for the real rows of the tail; rule: ``avgknn``, ``confidence`` or ``keys``."""

    rule: str
    members: Bools


def tail_members(real: Manifold, labels: NDArray[np.int64] | None = None) -> Bools:
    """(M,) the rarest fifth of each class, by mean distance to the k nearest real images of any class (AvgkNN).

    At least one image of each class belongs to it. labels (M,): classes; without them, all rows are of one class.
    """
    return _highest(real.mean_distance.astype(np.float64), labels)


def find_tail(
    rule: str,
    real: Labelled,
    confidence: NDArray[np.float64] | None,
    keys: Sequence[str],
    other_keys: Sequence[str] = (),
) -> Tail:
    """The tail of the real rows by ``rule``: ``avgknn``, ``confidence`` or the path of a list of keys, one per line.

    The first two rules take a fifth of each class, and at least one image of it. confidence: the classifier's p(own
    class) for each real row; keys: of the real rows; other_keys: of images that a list may name too, though they are
    not compared with. Raises ManifestError for a rule that cannot be applied, and DataError for a list with an unknown
    key or without any of ``keys``.
    """
    listed = check_tail(rule, confidence, keys, other_keys)
    if listed is not None:
        return Tail("keys", listed)
    if confidence is not None and rule == "confidence":
        return Tail(rule, _highest(-confidence, real.labels))
    return Tail(rule, tail_members(real.manifold, real.labels))


def check_tail(
    rule: str, confidence: NDArray[np.float64] | None, keys: Sequence[str], other_keys: Sequence[str] = ()
) -> Bools | None:
    """Raise what ``find_tail`` would raise. (M,) the members that a list names, None for the other rules."""
    if rule == "confidence" and confidence is None:
        allowed = "possible here: the classifier's weights are not there, or its code may not be imported"
        raise ManifestError(bad("tail", rule, allowed))
    if rule in RULES:
        return None
    listed = _read_list(Path(rule))
    unknown = sorted(listed - {*keys, *other_keys})
    if unknown:
        allowed = f"the key of a reference image, such as {keys[0]!r}"
        raise DataError(
            bad(f"tail {rule}", unknown[0], f"{allowed} ({len(unknown)} of {len(listed)} keys are unknown)")
        )
    members = np.array([key in listed for key in keys])
    if not members.any():
        raise DataError(bad("tail", rule, f"a list with at least one of the {len(keys)} reference images"))
    return members


def _highest(values: NDArray[np.float64], labels: NDArray[np.int64] | None) -> Bools:
    """(M,) the rows with the highest values: a fifth of each class, and at least one row of it."""
    members, classes = np.zeros(len(values), np.bool_), np.zeros(len(values)) if labels is None else labels
    for each in np.unique(classes):
        rows = np.flatnonzero(classes == each)
        count = max(1, round(TAIL_SHARE * len(rows)))
        members[rows[np.argsort(-values[rows], kind="stable")[:count]]] = True
    return members


def _read_list(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ManifestError(
            bad("tail", str(path), f"one of {', '.join(RULES)} or a readable file{near_path(path)}")
        ) from None
    return {line.strip() for line in lines if line.strip()}
