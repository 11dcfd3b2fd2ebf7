"""Typed reading of TOML tables. Each function takes a table and a dotted field name, and may raise ManifestError."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path

from rarefy.errors import ManifestError, bad, hint, one_of

Table = Mapping[str, object]
_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"(?<![\w-]){_PART}(?:[ \t]*\.[ \t]*{_PART}){{64}}")


def parse_toml(text: str) -> dict[str, object]:
    """The tables of a TOML text. Raises ManifestError, also for nesting and numbers that are too large to read."""
    if _LONG_KEY.search(text):  # the parser's time grows with the square of their length
        raise ManifestError("not TOML: a key has more than 64 parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ManifestError("not TOML: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of more digits than Python converts
        raise ManifestError(f"not TOML: {error}") from None


def known_keys(table: Table, field: str, allowed: Collection[str], file: str = "the manifest") -> None:
    """Raise ManifestError for a key that is not allowed; the message suggests the closest allowed one.

    field: the table's name, empty for the top of a file; file: what the message then calls the file.
    """
    for key in table:
        if key not in allowed:
            where = f"a key of [{field}]" if field else f"a key of {file}"
            raise ManifestError(bad("key", f"{field}.{key}".lstrip("."), f"{where} ({hint(key, allowed)})"))


def _leaf(field: str) -> str:
    return field.rsplit(".", 1)[-1]


def get_table(parent: Table, field: str) -> Table:
    """A sub-table; empty if absent."""
    value = parent.get(_leaf(field), {})
    if not isinstance(value, dict):
        raise ManifestError(bad(field, value, "a table"))
    return value


def get_text(table: Table, field: str, default: str | None = None) -> str:
    """A non-empty string."""
    value = table.get(_leaf(field), default)
    if not isinstance(value, str) or not value:
        raise ManifestError(bad(field, value, "a non-empty string"))
    return value


def get_match(table: Table, field: str, pattern: str, allowed: str, default: str | None = None) -> str:
    """A string that matches the whole pattern."""
    value = table.get(_leaf(field), default)
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise ManifestError(bad(field, value, allowed))
    return value


def get_choice(table: Table, field: str, choices: tuple[str, ...], default: str) -> str:
    """One of the choices."""
    value = table.get(_leaf(field), default)
    if not isinstance(value, str) or value not in choices:
        raise ManifestError(bad(field, value, one_of(value, choices)))
    return value


def get_flag(table: Table, field: str, default: bool) -> bool:
    """True or false."""
    value = table.get(_leaf(field), default)
    if not isinstance(value, bool):
        raise ManifestError(bad(field, value, "true or false"))
    return value


def get_integer(table: Table, field: str, low: int, high: int, default: int | None = None) -> int:
    """An integer from low to high, both included."""
    return check_integer(table.get(_leaf(field), default), field, low, high)


def check_integer(value: object, field: str, low: int, high: int) -> int:
    """Return the value if it is an integer from low to high, both included."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ManifestError(bad(field, value, f"an integer from {low} to {high}"))
    return value


def get_number(table: Table, field: str, low: float, high: float, default: float) -> float:
    """A number from low to high, both included, as a float."""
    value = table.get(_leaf(field), default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ManifestError(bad(field, value, f"a number from {low:g} to {high:g}"))
    return float(value)


def get_path(table: Table, field: str, folder: Path) -> str | None:
    """A local path, relative to ``folder``, made absolute; None if absent or empty."""
    if not table.get(_leaf(field)):
        return None
    value = get_text(table, field)
    return str(find_path(value, field, folder))


def find_path(written: str, field: str, folder: Path) -> Path:
    """A local path as a person writes it, made absolute. folder: where relative paths start. Raises ManifestError."""
    try:
        return (folder / Path(written).expanduser()).absolute()
    except RuntimeError:
        raise ManifestError(bad(field, written, "a path: there is no such user here")) from None


def get_sha256(table: Table, field: str) -> str | None:
    """A sha256 in hex; None if absent or empty."""
    if not table.get(_leaf(field)):
        return None
    return get_match(table, field, "[0-9a-f]{64}", "a sha256: 64 lower-case hex digits")
