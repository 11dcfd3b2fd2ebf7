"""Errors that a user can cause. The command line prints them in one line and exits with code 2."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Sequence
from pathlib import Path

ALIKE = 0.5  # of 1: how similar a name must be to be suggested
NAMES_SHOWN = 8
VALUE_SHOWN = 500  # characters


class RarefyError(ValueError):
    """Base class. The message names a field, its value and what is allowed."""


class ManifestError(RarefyError):
    """An invalid manifest or recipe."""


class CheckpointError(RarefyError):
    """A weights file that is missing, unreadable, or has the wrong shapes or hash."""


class ShardError(RarefyError):
    """A shard, its metadata or its marker is missing, damaged or belongs to another run."""


class ExhaustedError(ShardError):
    """Slots of a shard got no image that the manifest's [accept] accepts. Another attempt gives the same."""


class NonFiniteError(ShardError):
    """An image, its scores or its features have values that are not finite. Another attempt elsewhere may succeed."""


class DataError(RarefyError):
    """Training or reference images that cannot be used."""


class OutputError(RarefyError):
    """An output location that cannot be read or written, or that contains something else."""


class StorageError(OutputError):
    """A storage call failed although it was repeated for the time allowed. Later it may succeed."""


class DeviceError(RarefyError):
    """A device or resource that this machine or cluster lacks."""


class MissingPackageError(RarefyError):
    """A package is not installed that only an extra of rarefy brings."""


class TemporaryError(RarefyError):
    """A run that ended early, though not by the user's fault. The same command goes on. The exit code is 75."""


def bad(field: str, value: object, allowed: str) -> str:
    """The standard one-line message: field, value and what is allowed. None means that it is missing."""
    if value is None:
        return f"{field}: it is missing; give {allowed}"
    return f"{field}: {_shown(value)} is not {allowed}"


def needs_extra(what: str, packages: str, extra: str) -> MissingPackageError:
    """The error to raise where an optional package is missing: ``rarefy run needs Ray: pip install 'rarefy[run]'``.

    what: the command, option or value that needs it; packages: their names for people.
    """
    return MissingPackageError(f"{what} needs {packages}: pip install 'rarefy[{extra}]'")


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints, or tables nested too deeply
        text = f"a value of type {type(value).__name__} that is too large to show"
    return text if len(text) <= VALUE_SHOWN else f"{text[:VALUE_SHOWN]} ..."


def first_names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def near_name(name: object, known: Collection[str]) -> str | None:
    """The known name that is most similar to a mistyped one; None if none is similar."""
    near = difflib.get_close_matches(str(name).lower(), {each.lower(): each for each in known}, 1, ALIKE)
    return next((each for each in known if each.lower() == near[0]), None) if near else None


def hint(name: object, known: Collection[str]) -> str:
    """Which name was probably meant, for the end of a message: the most similar one, or all that are known."""
    near = near_name(name, known)
    return f"known: {', '.join(known)}" if near is None else f"nearest: {near}"


def one_of(name: object, known: Collection[str]) -> str:
    """What is allowed, for :func:`bad`: all known names, and the one that was probably meant."""
    near = near_name(name, known)
    return f"one of {', '.join(known)}" + ("" if near is None else f" (nearest: {near})")


def near_path(path: str | Path) -> str:
    """For the end of a message about a local path that does not exist: a similar name in the same folder, or "".

    If the folder does not exist either, the hint is about the first part of the path that does not.
    """
    if "://" in str(path):
        return ""
    missing = Path(path).absolute()
    while not missing.parent.exists():
        missing = missing.parent
    try:
        near = None if missing.exists() else near_name(missing.name, [each.name for each in missing.parent.iterdir()])
    except OSError:  # the folder cannot be read
        near = None
    if near is None:
        return ""
    return (
        f" (nearest: {missing.parent / near if Path(path).is_absolute() else os.path.relpath(missing.parent / near)})"
    )
