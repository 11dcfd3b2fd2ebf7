"""The registry of terms: it turns a manifest's [[guidance]] table into a term.

A table names a built-in term, an entry point that an installed package registers in the group ``rarefy.terms``, or the
import path of a class. The fields of the dataclass define the table's keys and types.
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
# What importing a broken module commonly raises. Other errors keep their traceback, for the module's author.
_IMPORT_ERRORS = (ImportError, SyntaxError, NameError, AttributeError, LookupError, TypeError, ValueError, OSError,
                  RuntimeError)  # fmt: skip


def parse_term(table: Mapping[str, object], field: str) -> Term:
    """The term of a manifest's [[guidance]] table. Raises ManifestError, which names the key and what is allowed."""
    kind = find_term(table.get("term"), f"{field}.term")
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
        raise ManifestError(f"{field}.{_line(error)}") from error


def find_term(name: object, field: str) -> type[Term]:
    """The class that a manifest's ``term`` names. Raises ManifestError, which lists the known names."""
    if isinstance(name, str) and name in TERMS:
        return TERMS[name]
    registered = {point.name: f"{point.module}:{point.attr}" for point in entry_points(group=ENTRY_POINTS)}
    path = name if isinstance(name, str) and ":" in name else registered.get(str(name))
    if path is not None:
        return _load(path, str(name), field)
    names = ", ".join([*TERMS, *(other for other in sorted(registered) if other not in TERMS)])
    raise ManifestError(bad(field, name, f"one of {names}, or the import path of a class, 'package.module:Class'"))


def _load(path: str, name: str, field: str) -> type[Term]:
    """Import a term's class. name: the term as written in the manifest."""
    module, _, attribute = path.partition(":")
    where = f"importable as {path}" if path != name else "importable"
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except _IMPORT_ERRORS as error:
        raise ManifestError(bad(field, name, f"{where} here: {type(error).__name__}: {_line(error)}")) from error
    if not isinstance(kind, type) or not issubclass(kind, KINDS) or "__dataclass_fields__" not in vars(kind):
        kinds = ", ".join(base.__name__ for base in KINDS)
        raise ManifestError(bad(field, name, f"a term, a dataclass that derives from one of {kinds}"))
    return kind


def _hints(kind: type[Term], field: str) -> dict[str, object]:
    try:
        return typing.get_type_hints(kind)
    except NameError as error:
        raise ManifestError(bad(field, kind.name, f"a term whose annotations can be read: {_line(error)}")) from error


def _required(field: dataclasses.Field[object]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
