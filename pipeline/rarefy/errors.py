"""The errors a user can cause. The command line prints one line for them and exits with code 2."""

from __future__ import annotations


class RarefyError(ValueError):
    """Base of the errors that name a field, its value and what is allowed."""


class ManifestError(RarefyError):
    """A manifest or recipe that cannot be carried out."""


class CheckpointError(RarefyError):
    """A weights file that is missing, unreadable, of another shape or of another hash."""


class ShardError(RarefyError):
    """A shard, its metadata or its marker that is missing, damaged or does not belong to the run."""


class DataError(RarefyError):
    """Training or reference images that cannot be used."""


class OutputError(RarefyError):
    """A place that cannot be read, written or holds something else."""


class DeviceError(RarefyError):
    """A device or resource that this machine or cluster does not have."""


def bad(field: str, value: object, allowed: str) -> str:
    """The one-line form of every such error: field, value, what is allowed."""
    return f"{field}: {value!r} is not {allowed}"
