"""The registry of terms: it turns a manifest's [[guidance]] table into a term.

A table names a built-in term, an entry point that an installed package registers in the group ``rarefy.terms``, or the
import path of a class, which is imported only if that is allowed (see :mod:`rarefy.plugins`). The fields of the
dataclass define the table's keys and types.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping

from rarefy.errors import ManifestError, bad, one_of
from rarefy.guidance.base import KINDS, Term
from rarefy.guidance.terms import (
    BoostAndSkip,
    ClassifierGuidance,
    EntropyAscent,
    LowConfidence,
    PredictedRealImage,
    SelfGuided,
)
from rarefy.guidance.values import read_value
from rarefy.plugins import import_plugin, one_line, registered_terms

TERMS: dict[str, type[Term]] = {
    kind.name: kind
    for kind in (ClassifierGuidance, LowConfidence, PredictedRealImage, EntropyAscent, SelfGuided, BoostAndSkip)
}


def parse_term(table: Mapping[str, object], field: str, allow_plugins: bool = False) -> Term:
    """The term of a manifest's [[guidance]] table. Raises ManifestError, which names the key and what is allowed."""
    kind = find_term(table.get("term"), f"{field}.term", allow_plugins)
    known = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for key, value in table.items():
        if key != "term" and key not in known:
            allowed = f"a key of {kind.name}, which has {', '.join(sorted(known))}"
            raise ManifestError(bad(f"{field}.{key}", value, allowed))
    hints = _hints(kind, f"{field}.term")
    values = {
        key: read_value(table.get(key), hints[key], f"{field}.{key}")
        for key, dataclass_field in known.items()
        if key in table or _required(dataclass_field)
    }
    try:
        return kind(**values)  # type: ignore[arg-type] # read_value has checked the types
    except ValueError as error:
        raise ManifestError(f"{field}.{one_line(error)}") from error


def find_term(name: object, field: str, allow_plugins: bool = False) -> type[Term]:
    """The class that a manifest's ``term`` names. Raises ManifestError, which lists the known names."""
    if isinstance(name, str) and name in TERMS:
        return TERMS[name]
    kind = import_plugin(plugin_path(name, field), field, str(name), allow_plugins)
    if not isinstance(kind, type) or not issubclass(kind, KINDS) or "__dataclass_fields__" not in vars(kind):
        kinds = ", ".join(base.__name__ for base in KINDS)
        raise ManifestError(bad(field, name, f"a term, a dataclass that derives from one of {kinds}"))
    return kind


def plugin_path(name: object, field: str) -> str:
    """The import path of a term that is not built in. Imports nothing. Raises ManifestError for an unknown name."""
    registered = registered_terms()
    path = name if isinstance(name, str) and ":" in name else registered.get(str(name))
    if path is None:
        names = [*TERMS, *(other for other in sorted(registered) if other not in TERMS)]
        allowed = f"{one_of(name, names)}, or the import path of a class, 'package.module:Class'"
        raise ManifestError(bad(field, name, allowed))
    return path


def _hints(kind: type[Term], field: str) -> dict[str, object]:
    try:
        return typing.get_type_hints(kind)
    except NameError as error:
        raise ManifestError(
            bad(field, kind.name, f"a term whose annotations can be read: {one_line(error)}")
        ) from error


def _required(field: dataclasses.Field[object]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
