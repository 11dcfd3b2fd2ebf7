"""Terms of plug-ins in runs that are only read, without their code.

``model.json`` of a run keeps for each of its plug-ins the import path and the values of all fields. With them the
manifest's digest can be computed without the code, which a reader of other people's data sets must not import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rarefy.errors import ManifestError, bad
from rarefy.guidance.base import Term
from rarefy.guidance.registry import TERMS, parse_term

_KEYS = {"class": str, "name": str, "values": dict}


@dataclass(frozen=True, kw_only=True)
class OpaqueTerm(Term):
    """A plug-in's term whose code was not imported. A chain refuses it.

    path: import path of its class; shown: its name in rows and reports; values: its fields, as the digest has them.
    """

    path: str
    shown: str
    values: Mapping[str, object]

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.shown)


def read_opaque(content: Any, field: str) -> OpaqueTerm:
    """A plug-in's term as ``model.json`` has it. Raises ManifestError."""
    keys = set(content) if isinstance(content, dict) else set()
    if keys != set(_KEYS) or not all(isinstance(content[key], kind) for key, kind in _KEYS.items()):
        raise ManifestError(bad(field, content, "an object with the keys class, name and values"))
    return OpaqueTerm(path=content["class"], shown=content["name"], values=content["values"])


def parse_unread(table: Mapping[str, object], field: str, kept: Sequence[OpaqueTerm]) -> Term:
    """The term of a run's [[guidance]] table, without importing a plug-in.

    kept: the plug-ins' terms that are left in ``model.json``, in the manifest's order. Raises ManifestError if the next
    one is not the table's.
    """
    name = table.get("term")
    if isinstance(name, str) and name in TERMS:
        return parse_term(table, field)
    if not kept:
        hint = "of a run whose model.json keeps its values; rarefy generate with --allow-plugins writes it again"
        raise ManifestError(bad(f"{field}.term", name, f"a built-in term or {hint}"))
    term = kept[0]
    for key, value in table.items():
        if key != "term" and (key not in term.values or term.values[key] != value):
            raise ManifestError(bad(f"{field}.{key}", value, f"{term.values.get(key)!r}, as in this run's model.json"))
    return term
