"""Which real images count as the tail: the sparsest, the least confident, or the user's own list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rarefy.audit.features.cache import array_digest
from rarefy.audit.inputs.reference import Reference
from rarefy.audit.metrics.neighbors import Bools, Manifold
from rarefy.errors import DataError, ManifestError, bad

TAIL_SHARE = 0.2
RULES = ("avgknn", "confidence")


@dataclass(frozen=True)
class Tail:
    """members (M,): real rows of the tail; rule: ``avgknn``, ``confidence`` or ``keys``."""

    rule: str
    members: Bools

    def summary(self) -> dict[str, Any]:
        """The entry of metrics.json: rule, share of the real images, count, and a hash that tells tails apart."""
        return {
            "rule": self.rule,
            "share": float(self.members.mean()),
            "count": int(self.members.sum()),
            "sha256": array_digest(self.members),
        }


def tail_members(real: Manifold) -> Bools:
    """(M,) the rarest fifth of the real rows, by mean distance to their k nearest neighbours."""
    return np.asarray(real.mean_distance >= np.quantile(real.mean_distance, 1.0 - TAIL_SHARE))


def find_tail(rule: str, real: Manifold, confidence: NDArray[np.float64] | None, reference: Reference) -> Tail:
    """The tail of the real rows by ``rule``: ``avgknn``, ``confidence`` or the path of a list of keys, one a line.

    confidence: the classifier's p(own class) of each real row; reference: what the rows are of. Raises ManifestError
    for a rule that cannot be followed, DataError for a list with a key that the reference has not, or with none of the
    part that is compared with.
    """
    if rule == "avgknn":
        return Tail(rule, tail_members(real))
    if rule == "confidence":
        if confidence is None:
            raise ManifestError(bad("tail", rule, "possible here: the classifier's weights are not within reach"))
        return Tail(rule, np.asarray(confidence <= np.quantile(confidence, TAIL_SHARE)))
    keys, own = _read_list(Path(rule)), reference.real.keys
    unknown = sorted(keys - {*own, *reference.held_out.keys})
    if unknown:
        allowed = f"the key of an image of the reference, such as {own[0]!r}"
        raise DataError(bad(f"tail {rule}", unknown[0], f"{allowed} ({len(unknown)} of {len(keys)} are not)"))
    members = np.array([key in keys for key in own])
    if not members.any():
        raise DataError(bad("tail", rule, f"a list that names any of the {len(own)} real images compared with"))
    return Tail("keys", members)


def _read_list(path: Path) -> set[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise ManifestError(bad("tail", str(path), f"one of {', '.join(RULES)} or a readable list")) from None
    return {line.strip() for line in lines if line.strip()}
