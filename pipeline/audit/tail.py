"""Which real images count as the tail: the sparsest, the least confident, or the user's own list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.audit.neighbors import Bools, Manifold
from pipeline.errors import DataError, ManifestError, bad

TAIL_SHARE = 0.2
RULES = ("avgknn", "confidence")


@dataclass(frozen=True)
class Tail:
    """members (M,): real rows of the tail; rule: ``avgknn``, ``confidence`` or ``keys``."""

    rule: str
    members: Bools

    def summary(self) -> dict[str, Any]:
        """The entry of metrics.json: rule, share of the real images, count."""
        return {"rule": self.rule, "share": float(self.members.mean()), "count": int(self.members.sum())}


def tail_members(real: Manifold) -> Bools:
    """(M,) the rarest fifth of the real rows, by mean distance to their k nearest neighbours."""
    return np.asarray(real.mean_distance >= np.quantile(real.mean_distance, 1.0 - TAIL_SHARE))


def find_tail(rule: str, real: Manifold, confidence: NDArray[np.float64] | None, places: NDArray[np.int64]) -> Tail:
    """The tail of the real rows by ``rule``: ``avgknn``, ``confidence`` or the path of a list.

    confidence: the classifier's p(own class) of each real row; places: where each row stands in the reference as the
    user gave it, which is what a list names, one number a line from 0. Raises ManifestError for a rule that cannot be
    followed, DataError for a list that names no image of the compared part.
    """
    if rule == "avgknn":
        return Tail(rule, tail_members(real))
    if rule == "confidence":
        if confidence is None:
            raise ManifestError(bad("tail", rule, "possible here: the classifier's weights are not within reach"))
        return Tail(rule, np.asarray(confidence <= np.quantile(confidence, TAIL_SHARE)))
    members = np.isin(places, _read_list(Path(rule)))
    if not members.any():
        raise DataError(bad("tail", rule, f"a list that names any of the {len(places)} real images compared with"))
    return Tail("keys", members)


def _read_list(path: Path) -> NDArray[np.int64]:
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError):
        raise ManifestError(bad("tail", str(path), f"one of {', '.join(RULES)} or a readable list")) from None
    wrong = [line for line in lines if not line.isdecimal()]
    if wrong:
        raise ManifestError(bad(f"tail {path}", wrong[0], "the number of a real image, counted from 0"))
    return np.array([int(line) for line in lines], np.int64)
