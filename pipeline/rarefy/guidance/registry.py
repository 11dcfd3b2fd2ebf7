"""Which terms there are, and how a manifest's [[guidance]] table becomes one.

A term is named by a built-in's name, by an entry point of the group ``rarefy.terms`` of an installed package, or by the
import path of its class. Its dataclass says which keys there are and of what types; it checks their values itself.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing
from collections.abc import Mapping
from importlib.metadata import entry_points

from rarefy.errors import ManifestError, bad
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

ENTRY_POINTS = "rarefy.terms"
TERMS: dict[str, type[Term]] = {
    kind.name: kind
    for kind in (ClassifierGuidance, LowConfidence, PredictedRealImage, EntropyAscent, SelfGuided, BoostAndSkip)
}
# What the top level of somebody's module commonly raises; anything else is for its author to see whole.
_IMPORT_ERRORS = (ImportError, SyntaxError, NameError, AttributeError, LookupError, TypeError, ValueError, OSError,
                  RuntimeError)  # fmt: skip


def parse_term(table: Mapping[str, object], field: str) -> Term:
    """Make a term from a manifest's [[guidance]] table. Raises ManifestError naming the key and what is allowed."""
    kind = find_term(table.get("term"), f"{field}.term")
    known = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for key, value in table.items():
        if key != "term" and key not in known:
            allowed = f"a key of {kind.name}, which has {', '.join(sorted(known))}"
            raise ManifestError(bad(f"{field}.{key}", value, allowed))
    hints = _hints(kind, f"{field}.term")
    values = {
        key: read_value(table.get(key), hints[key], f"{field}.{key}")
        for key, known_field in known.items()
        if key in table or _required(known_field)
    }
    try:
        return kind(**values)  # type: ignore[arg-type] # each was read as its field's type
    except ValueError as error:
        raise ManifestError(f"{field}.{_line(error)}") from error


def find_term(name: object, field: str) -> type[Term]:
    """The class that a manifest's ``term`` names. Raises ManifestError listing the names there are."""
    if isinstance(name, str) and name in TERMS:
        return TERMS[name]
    registered = {point.name: f"{point.module}:{point.attr}" for point in entry_points(group=ENTRY_POINTS)}
    path = name if isinstance(name, str) and ":" in name else registered.get(str(name))
    if path is not None:
        return _load(path, str(name), field)
    names = ", ".join([*TERMS, *(other for other in sorted(registered) if other not in TERMS)])
    raise ManifestError(bad(field, name, f"one of {names}, or the import path of a class, 'package.module:Class'"))


def _load(path: str, name: str, field: str) -> type[Term]:
    """Import a term's class. ``name`` is how the manifest calls it."""
    module, _, attribute = path.partition(":")
    where = f"importable as {path}" if path != name else "importable"
    try:
        found = getattr(importlib.import_module(module), attribute)
    except _IMPORT_ERRORS as error:
        raise ManifestError(bad(field, name, f"{where} here: {type(error).__name__}: {_line(error)}")) from error
    if not isinstance(found, type) or not issubclass(found, KINDS) or "__dataclass_fields__" not in vars(found):
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise ManifestError(bad(field, name, f"a term, a dataclass that derives from one of {kinds}"))
    return found


def _hints(kind: type[Term], field: str) -> dict[str, object]:
    try:
        return typing.get_type_hints(kind)
    except NameError as error:
        raise ManifestError(bad(field, kind.name, f"a term whose annotations can be read: {_line(error)}")) from error


def _required(field: dataclasses.Field[object]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
