"""The only door for code that a manifest or a model folder names by an import path.

Such code is a plug-in: a guidance term, or a network of your own. It is imported only if the caller allows it
(``--allow-plugins``), or if an installed package lists it as an entry point. Built-in terms and networks are no
plug-ins. docs/TERMS.md says what runs code and what does not.
"""

from __future__ import annotations

import importlib
import os
from importlib.metadata import EntryPoint, entry_points

from rarefy.errors import ManifestError, bad

FLAG, VARIABLE = "--allow-plugins", "RAREFY_ALLOW_PLUGINS"
GROUP = "rarefy.plugins"  # entry points: modules, or objects of modules, that may be imported
TERM_GROUP = "rarefy.terms"  # entry points: guidance terms that a manifest may also call by the entry point's name
# What importing a broken module commonly raises. Other errors keep their traceback, for the module's author.
IMPORT_ERRORS = (ImportError, SyntaxError, NameError, AttributeError, LookupError, TypeError, ValueError, OSError,
                 RuntimeError)  # fmt: skip


def allowed_by_environment() -> bool:
    """Whether RAREFY_ALLOW_PLUGINS allows plug-ins, as --allow-plugins does. Raises ManifestError for other values."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ManifestError(bad(VARIABLE, value, "1 (import the code that manifests and models name) or 0"))
    return value == "1"


def may_import(path: str, allowed: bool) -> bool:
    """Whether an object or its module may be imported: allowed, or listed by an installed package. Imports nothing."""
    points = [*entry_points(group=GROUP), *entry_points(group=TERM_GROUP)]
    return allowed or any(_lists(point, path) for point in points)


def check_plugin(path: str, field: str, name: str, allowed: bool) -> None:
    """Raise ManifestError, which names the flag, unless this import path may be imported. Imports nothing.

    path: ``package.module:object``; name: what the file says, which may be the name of an entry point.
    """
    if not may_import(path, allowed):
        what = f"imported without {FLAG} (or {VARIABLE}=1), because that runs its code; allow it only if you trust it"
        raise ManifestError(bad(field, name, what))


def import_plugin(path: str, field: str, name: str, allowed: bool) -> object:
    """Import an object by its import path, if that is allowed. Raises ManifestError."""
    check_plugin(path, field, name, allowed)
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except IMPORT_ERRORS as error:
        where = f"importable as {path}" if path != name else "importable"
        raise ManifestError(bad(field, name, f"{where} here: {type(error).__name__}: {one_line(error)}")) from error


def registered_terms() -> dict[str, str]:
    """Import path of each term that an installed package registers, by the entry point's name. Imports nothing."""
    return {point.name: f"{point.module}:{point.attr}" for point in entry_points(group=TERM_GROUP)}


def one_line(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())


def _lists(point: EntryPoint, path: str) -> bool:
    return path == f"{point.module}:{point.attr}" if point.attr else path.partition(":")[0] == point.module
